"""What a family's file is written with.

A family says four things: what the keys of its `config.json` mean, which `EncoderConfig` they make, which of its
architectures have which head, and what its weights are called here. Each family is one small file with one object
(`Family`) and one line in the registry, `__init__.py`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig
from heed.model.feed_forward import Activation
from heed.model.pooling import PoolingConfig

Json = dict[str, Any]

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

# In configs of any family: what cannot change the numbers at inference.
NEUTRAL = frozenset(
    {
        # Bookkeeping.
        "_name_or_path",
        "_num_labels",
        "finetuning_task",
        "label2id",
        "name_or_path",
        "task_specific_params",
        "tokenizer_class",
        "transformers_version",
        # What sentence-transformers applies to a cross-encoder's logits; here they stay as they are.
        "sbert_ce_default_activation_function",
        "sentence_transformers",
        # Training, and the type of numbers in the files.
        "dtype",
        "gradient_checkpointing",
        "initializer_range",
        "problem_type",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "torch_dtype",
        # How the same numbers are computed or handed over.
        "_attn_implementation_autoset",
        "chunk_size_feed_forward",
        "output_past",
        "return_dict",
        "torchscript",
        "use_bfloat16",
        "use_cache",
        "xla_device",
        # Ids that only tokenizers and generation look at.
        "bos_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "eos_token_ids",
        "mask_token_id",
        "prefix",
        "sep_token_id",
        "unk_token_id",
        # Generation.
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "bad_words_ids",
        "begin_suppress_tokens",
        "cross_attention_hidden_size",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "target_lookbehind",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)

# In the config of every family; any other value would change the answers.
FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "pruned_heads": ({}, None),
}


@dataclass(frozen=True)
class Keys:
    """What becomes of the keys of a `config.json`.

    Any key that is not listed is refused by name, because it might matter.
    """

    required: frozenset[str]
    # With what the family means when the config leaves them out.
    optional: Mapping[str, Any] = field(default_factory=dict)
    neutral: frozenset[str] = frozenset()  # beside `NEUTRAL`
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # beside `FIXED`

    def read(self, config: Json) -> Json:
        """The keys that count, each with a value.

        Raises:
            ValueError: a key is missing, unknown or has a value that this package does not compute.
        """
        fixed = FIXED | dict(self.fixed)
        optional = {"architectures": None, "model_type": None, "id2label": None, "num_labels": None} | dict(
            self.optional
        )
        for key, value in config.items():
            if key in fixed and value not in fixed[key]:
                raise ValueError(f"config.json: {key}={value!r} is not supported, only {fixed[key][0]!r}")
            if key not in self.required | self.neutral | NEUTRAL | optional.keys() | fixed.keys():
                raise ValueError(
                    f"config.json: {key}={value!r} is not known to this version and might change the answers"
                )
        missing = sorted(self.required - config.keys())
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        return optional | {key: config[key] for key in config if key in self.required | optional.keys()}


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
    prefix: str  # of the encoder's weights, in checkpoints that have a head as well
    keys: Keys
    encoder: Callable[[Json, PoolingConfig | LabelsConfig | None], EncoderConfig]  # of what `Keys.read` returns
    weights: Weights
    heads: Mapping[str, Head | None]  # by architecture; None: the encoder alone is read
    beside: tuple[str, ...] = ()  # beginnings of names that belong neither to the encoder nor to a head that is read

    def head(self, architectures: object) -> Head | None:
        """The head of a config's `architectures`; the encoder alone where it names none.

        Raises:
            ValueError: one is not read here, or they have different heads.
        """
        names: list[Any] = (
            architectures if isinstance(architectures, list) else [architectures] if architectures else []
        )
        for name in names:
            if name not in list(self.heads):  # a list: what comes may not be hashable
                raise ValueError(f"config.json: architecture {name} is not supported, only {', '.join(self.heads)}")
        heads = [self.heads[name] for name in names]
        if any(head != heads[0] for head in heads):
            raise ValueError(f"config.json: architectures {', '.join(names)} have different heads")
        return heads[0] if heads else None

    def read(self, config: Json, pooling: PoolingConfig | None = None) -> EncoderConfig:
        """Translates a `config.json`.

        Args:
            pooling: what a sentence-transformers folder puts on the encoder, in place of a head of its own.

        Raises:
            ValueError: a key is missing, unknown or has a value that this package does not compute.
        """
        settings = self.keys.read(config)
        head = self.head(settings["architectures"])
        if head is None or pooling is not None:
            return self.encoder(settings, pooling)
        return self.encoder(settings, head.labels(settings, label_names(settings)))

    def translate(self, published: str, tensor: Tensor, head: Head | None) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors for a published weight; none for one that lies beside the encoder and the head.

        A name that is not known comes back unchanged, and loading will refuse it.
        """
        weights = {**self.weights, **(head.weights if head else {})}
        name = published.removeprefix(self.prefix)
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # names of 2018
        target = _look_up(weights, name)
        if target is None:
            if not name.startswith(self.beside):
                yield name, tensor
        elif isinstance(target, str):
            yield target, tensor
        else:
            yield from zip(target.names, target.take(tensor), strict=False)


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


def label_names(config: Json) -> tuple[str, ...]:
    """The labels' names in order; LABEL_0, LABEL_1, ... where the config has none, two if it does not say how many.

    Where several have one name, their numbers tell them apart: ImageNet has two kinds of "crane".

    Raises:
        ValueError: the numbers of the labels are not 0, 1, ..., or a name is none.
    """
    names = config["id2label"]
    if names is None:
        number_of_labels = 2 if config["num_labels"] is None else count(config, "num_labels")
        return tuple(f"LABEL_{number}" for number in range(number_of_labels))
    if not isinstance(names, dict) or not names or set(names) != {str(number) for number in range(len(names))}:
        raise ValueError(f"config.json: id2label={names!r} does not name the labels 0, 1, ...")
    for name in names.values():
        if not isinstance(name, str | int):
            raise ValueError(f"config.json: id2label={names!r} names a label {name!r}")
    if config["num_labels"] not in (None, len(names)):
        raise ValueError(f"config.json: num_labels={config['num_labels']!r}, but id2label has {len(names)} names")
    in_order = tuple(str(names[str(number)]) for number in range(len(names)))
    times = Counter(in_order)
    return tuple(name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(in_order))
