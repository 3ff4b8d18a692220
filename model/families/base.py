"""What a family's file is written with.

A family says four things: what the keys of its `config.json` mean, which `EncoderConfig` they make, which of its
architectures have which head, and what its weights are called here. Each family is one small file with one object
(`Family`) and one line in the registry, `__init__.py`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig
from heed.model.families.keys import Json, Keys, architectures, has_code
from heed.model.families.labels import label_names
from heed.model.families.transformers_names import ARCHITECTURES
from heed.model.feed_forward import Activation
from heed.model.pooling import PoolingConfig

# The names that transformers has for what an `Activation` computes.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def activation(config: Json, key: str) -> Activation:
    """The activation that a key names.

    Raises:
        ValueError: it is none that this package computes.
    """
    if config[key] not in list(ACTIVATIONS):  # a list: what comes may not be hashable
        raise ValueError(f"config.json: {key}={config[key]!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[config[key]]


def count(config: Json, key: str) -> int:
    """The number of something that a key gives.

    Raises:
        ValueError: it is not a positive integer.
    """
    value = config[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {key}={value!r} is not a positive integer")
    return value


def flag(config: Json, key: str) -> bool:
    """A setting that is on or off.

    Raises:
        ValueError: it is neither.
    """
    value = config[key]
    if type(value) is not bool:
        raise ValueError(f"config.json: {key}={value!r} is neither true nor false")
    return value


@dataclass(frozen=True)
class Parts:
    """Where a published weight goes whose numbers lie otherwise there: one tensor for each of our names."""

    names: tuple[str, ...]
    take: Callable[[Tensor], tuple[Tensor, ...]]


def split(*names: str) -> Parts:
    """Equal parts of the first axis, one after the other: projections that are stored as one."""
    return Parts(names, lambda tensor: tuple(part.clone() for part in tensor.chunk(len(names))))


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Parts:
    """One weight in another shape."""
    return Parts((name,), lambda tensor: (change(tensor),))


# Published names to ours, both of a module ("pooler.dense": its weight and bias keep their names) or of one weight
# alone. `#` stands for the number of a layer. Names have lost the family's prefix.
Weights = Mapping[str, str | Parts]


@dataclass(frozen=True)
class Head:
    """What an architecture puts on the encoder."""

    labels: Callable[[Json, tuple[str, ...]], LabelsConfig]  # of what `Keys.read` returns, and the names of the labels
    weights: Weights


@dataclass(frozen=True)
class Family:
    """A published family in the words of this package."""

    name: str  # `model_type`
    prefix: str | tuple[str, ...]  # of the encoder's weights, in checkpoints that have a head as well; any of several
    keys: Keys
    encoder: Callable[[Json, PoolingConfig | LabelsConfig | None], EncoderConfig]  # of what `Keys.read` returns
    weights: Weights
    heads: Mapping[str, Head | None]  # by architecture; None: the encoder alone is read
    # Beginnings of names that belong neither to the encoder nor to a head that is read, and what they are; "" for
    # buffers, which nobody misses.
    beside: Mapping[str, str] = field(default_factory=dict)
    # Weights of ours that folders may hold although their config has no use for them.
    spare: frozenset[str] = frozenset()
    # Other values of `model_type` under which it is published. Where two families share one, the architectures decide.
    other_types: tuple[str, ...] = ()

    def head(self, config: Json) -> Head | None:
        """The head of a config's `architectures`; the encoder alone where it names none.

        A class that `transformers` does not have is read as the encoder alone: whatever it adds by weights is refused
        by those weights.

        Raises:
            ValueError: one is not read here, or they have different heads.
        """
        names = architectures(config)
        for name in names:
            if name not in self.heads and (name in ARCHITECTURES or has_code(config)):
                raise ValueError(f"config.json: architecture {name} is not supported, only {', '.join(self.heads)}")
        heads = [self.heads.get(name) for name in names]
        if any(head != heads[0] for head in heads):
            raise ValueError(f"config.json: architectures {', '.join(names)} have different heads")
        return heads[0] if heads else None

    def read(
        self, config: Json, pooling: PoolingConfig | None = None, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> EncoderConfig:
        """Translates a `config.json`.

        Args:
            pooling: what a sentence-transformers folder puts on the encoder, in place of a head of its own.
            shapes: of the published weights, by name. A head has as many labels as it has rows.

        Raises:
            ValueError: a key is missing, unknown or has a value that this package does not compute.
        """
        settings = self.keys.read(config)
        head = self.head(config)
        if head is None or pooling is not None:
            return self.encoder(settings, pooling)
        return self.encoder(settings, head.labels(settings, label_names(settings, self.rows(shapes or {}, head))))

    def rows(self, shapes: Mapping[str, Sequence[int]], head: Head) -> int | None:
        """How many labels a head has by the shape of its last weight; None if it is not there."""
        rows = (shape[0] for name, shape in shapes.items() if self._target(name, head) == "head.out.weight" and shape)
        return next(rows, None)

    def translate(self, published: str, tensor: Tensor, head: Head | None) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors for a published weight; none for one that lies beside the encoder and the head.

        A name that is not known comes back unchanged, and loading will refuse it.
        """
        target = self._target(published, head)
        if target is None:
            if self.beside_of(published) is None:
                yield self._unprefixed(published), tensor
        elif isinstance(target, str):
            yield target, tensor
        else:
            yield from zip(target.names, target.take(tensor), strict=False)

    def beside_of(self, published: str) -> str | None:
        """Which of `beside` a published weight belongs to."""
        name = self._unprefixed(published)
        return next((beginning for beginning in self.beside if name.startswith(beginning)), None)

    def _unprefixed(self, published: str) -> str:
        prefixes = (self.prefix,) if isinstance(self.prefix, str) else self.prefix
        return published.removeprefix(next(filter(published.startswith, prefixes), ""))

    def _target(self, published: str, head: Head | None) -> str | Parts | None:
        """Where a published weight goes; None if it is not known."""
        weights = {**self.weights, **(head.weights if head else {})}
        name = self._unprefixed(published)
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # names of 2018
        return _look_up(weights, name)


def _look_up(weights: Weights, name: str) -> str | Parts | None:
    """The rule for a weight, with the layer's number in place."""
    number = re.search(r"\.(\d+)\.", name)
    generic = name if number is None else f"{name[: number.start()]}.#.{name[number.end() :]}"

    def numbered(text: str) -> str:
        return text.replace("#", number[1]) if number else text

    if generic in weights:
        target, suffix = weights[generic], ""
    else:
        module, dot, last = generic.rpartition(".")
        if module not in weights:
            return None
        target, suffix = weights[module], dot + last
    if isinstance(target, str):
        return numbered(target) + suffix
    return Parts(tuple(numbered(name) + suffix for name in target.names), target.take)
