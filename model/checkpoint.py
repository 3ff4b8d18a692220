"""Loads published checkpoints: folders in the Hugging Face layout, sentence-transformers folders included."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heed.model.checkpoint_files import INDEX, CheckpointError, read_json, read_shapes, read_weights, weight_files
from heed.model.encoder import Encoder
from heed.model.families import FAMILIES, Family, Head
from heed.model.promised_scores import with_scores
from heed.model.sentence_transformers_folder import Prompts, SentenceFolder, read_sentence_folder
from heed.model.tokenizer_files import read_tokenizer

LONGEST = 2**17  # what a config may say of any size without a weight of that size: rotary positions have none
DEEPEST = 1000  # layers that are made whatever the weights are

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A model with what belongs to it: a published one, loaded, or one's own."""

    encoder: Encoder  # float32, in evaluation mode
    family: str = "own"
    tokenizer: Path | None = None  # tokenizer.json
    tokenizer_changes: Mapping[str, Any] = field(default_factory=dict)  # the parts of it that count otherwise
    max_text_length: int = 0  # tokens of one text, special tokens included; 0: as many as the model takes
    files: tuple[Path, ...] = ()  # all that was read
    prompts: Prompts = Prompts()
    notes: tuple[str, ...] = ()  # what of the folder is not in the model, or not as its config says: for people

    def tokenizer_json(self) -> bytes:
        """The tokenizer that is served, as the `tokenizers` library reads it; for a model that has one."""
        assert self.tokenizer
        if not self.tokenizer_changes:
            return self.tokenizer.read_bytes()
        return json.dumps(read_json(self.tokenizer) | dict(self.tokenizer_changes), ensure_ascii=False).encode()


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Loads a folder with `config.json`, `*.safetensors` and, where there is text, `tokenizer.json`.

    Raises:
        CheckpointError: something is missing, damaged, in conflict or not supported; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a checkpoint folder with config.json and *.safetensors")
    outer = read_sentence_folder(folder)
    inner = outer.transformer
    raw = read_json(inner / "config.json")
    family = _family(raw)
    weights = weight_files(inner)
    encoder = _unweighted(family, raw, outer, read_shapes(weights))
    head = family.head(raw.get("architectures"))
    layers = {number: weight_files(path) for number, path in outer.weighted.items()}
    own = _of_family(family, head, weights)
    if outer.pooling:  # in place of the head
        own = (weight for weight in own if not weight.name.startswith("head."))
    _assign(encoder, chain(own, _of_layers(layers)))
    tokenizer = read_tokenizer(inner, raw, outer.texts.lower_case)
    settings = [inner / "config.json", inner / INDEX, *(tokenizer.files if tokenizer else ())]
    files = (*outer.files, *(path for path in settings if path.exists()), *weights, *chain(*layers.values()))
    return Checkpoint(
        encoder=encoder.eval().requires_grad_(False),
        family=family.name,
        tokenizer=tokenizer.path if tokenizer else None,
        tokenizer_changes=tokenizer.changes if tokenizer else {},
        max_text_length=int(min(outer.texts.tokens, encoder.config.max_length)),
        files=tuple(dict.fromkeys(files)),
        prompts=outer.prompts,
        notes=(*outer.notes, *_head_note(outer, head), *(tokenizer.notes if tokenizer else ())),
    )


def _family(raw: dict[str, Any]) -> Family:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"config.json: model_type={model_type!r} is not supported, only {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _unweighted(family: Family, raw: dict[str, Any], outer: SentenceFolder, shapes: list[list[int]]) -> Encoder:
    """The encoder that a config describes, with its constants but without storage for its weights."""
    try:
        _check_sizes(family.keys.read(raw), shapes)
        config = with_scores(family.read(raw, outer.pooling), raw, outer.activation)
        if len(config.layers) > max(DEEPEST, len(shapes)):
            raise ValueError(f"config.json says {len(config.layers)} layers, but there are only {len(shapes)} weights")
        with torch.device("meta"):
            return Encoder(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(str(error)) from None


def _check_sizes(settings: dict[str, Any], shapes: list[list[int]]) -> None:
    """Refuses numbers that no weight can bear out, before anything of such a size is made."""
    largest = max([LONGEST, *(size for shape in shapes for size in shape)])
    for key, value in settings.items():
        if isinstance(value, int) and value > largest:
            raise ValueError(
                f"config.json: {key}={value}, but the largest size that a weight could bear out is {largest}"
            )


@dataclass(frozen=True)
class Weight:
    """A weight by its published name and by ours."""

    published: str
    name: str
    tensor: Tensor


def _of_family(family: Family, head: Head | None, files: list[Path]) -> Iterator[Weight]:
    for published, whole in read_weights(files):
        try:
            parts = list(family.translate(published, whole, head))
        except (IndexError, RuntimeError):  # too few axes to be taken apart
            raise CheckpointError(f"weight {published} has shape {list(whole.shape)}, too few axes") from None
        for name, tensor in parts:
            yield Weight(published, name, tensor)


def _of_layers(files: Mapping[int, list[Path]]) -> Iterator[Weight]:
    """Those of the layers behind the pooling, by their numbers."""
    for number, each in files.items():
        for published, tensor in read_weights(each):
            name = f"head.layers.{number}.{published.removeprefix('norm.')}"
            yield Weight(f"{each[0].parent.name}/{published}", name, tensor)


def _head_note(outer: SentenceFolder, head: Head | None) -> list[str]:
    return ["left out: the head of config.json's architectures, because modules.json pools"] * bool(
        outer.pooling and head
    )


def _assign(encoder: Encoder, weights: Iterable[Weight]) -> None:
    """Gives the encoder its weights; every one of them must be there and have the shape that the config says."""
    expected = dict(encoder.named_parameters())
    state: dict[str, Tensor] = {}
    for weight in weights:
        if weight.name not in expected:
            raise CheckpointError(f"weight {weight.published} has no place in the model that config.json describes")
        if weight.name in state:
            raise CheckpointError(f"weight {weight.published} is there twice, under two names")
        _check(weight, expected[weight.name])
        state[weight.name] = weight.tensor.float()
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise CheckpointError(f"the weights lack {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1)))
    encoder.load_state_dict(state, assign=True)


def _check(weight: Weight, expected: Tensor) -> None:
    tensor = weight.tensor
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"weight {weight.published} has shape {list(tensor.shape)}, config.json says {list(expected.shape)}"
        )
    if not tensor.is_floating_point():
        raise CheckpointError(f"weight {weight.published} has type {tensor.dtype}, expected a float type")
    # Of a type that can be asked; `isfinite` of all numbers would take as much memory again.
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.float().aminmax())).all():
        raise CheckpointError(f"weight {weight.published} holds NaN or infinity")
