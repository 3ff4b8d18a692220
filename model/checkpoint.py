"""Loads published checkpoints: folders in the Hugging Face layout, sentence-transformers folders included."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heed.model.checkpoint_files import CheckpointError, StoredWeights, find_weights, read_json
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, ImagesConfig
from heed.model.encoder import Encoder
from heed.model.families import FAMILIES, Family, Head
from heed.model.families.keys import architectures, has_code
from heed.model.families.labels import labels_note
from heed.model.promised_scores import with_scores
from heed.model.sentence_transformers_folder import Prompts, SentenceFolder, read_sentence_folder
from heed.model.tokenizer_files import read_tokenizer

LONGEST = 2**17  # what a config may say of any size without a weight of that size: rotary positions have none
ADAPTER = "adapter_config.json"  # of peft
LARGEST_WEIGHT = 1e10  # what a norm makes of numbers past 1e19 is wrong without being infinite
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
    ignored_keys: tuple[str, ...] = ()  # of config.json, because the user said so
    notes: tuple[str, ...] = ()  # what of the folder is not in the model, or not as its config says: for people

    def tokenizer_json(self) -> bytes:
        """The tokenizer that is served, as the `tokenizers` library reads it; for a model that has one."""
        assert self.tokenizer
        if not self.tokenizer_changes:
            return self.tokenizer.read_bytes()
        return json.dumps(read_json(self.tokenizer) | dict(self.tokenizer_changes), ensure_ascii=False).encode()


def load_checkpoint(folder: Path | str, ignore_keys: Collection[str] = (), max_length: int | None = None) -> Checkpoint:
    """Loads a folder with `config.json`, weights and, where there is text, `tokenizer.json`.

    Args:
        ignore_keys: keys of `config.json` to pass over as if they were not there: those that this version does not
            know, and that do not change the answers by what the caller knows.
        max_length: tokens of the longest row, if fewer than the model could take.

    Raises:
        CheckpointError: something is missing, damaged, in conflict or not supported; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a checkpoint folder with config.json and weights")
    outer = read_sentence_folder(folder)
    inner = outer.transformer
    raw = _config(inner, ignore_keys)
    family = _family(raw)
    weights = find_weights(inner)
    layers = {number: find_weights(path) for number, path in outer.weighted.items()}
    reading = Reading(family, raw, weights, outer, max_length)
    encoder = reading.unweighted()
    reading.assign(encoder, layers)
    tokenizer = read_tokenizer(inner, raw, outer.texts.lower_case)
    settings = (inner / "config.json", *(tokenizer.files if tokenizer else ()))
    files = (*outer.files, *settings, *chain(*(each.read_files for each in (weights, *layers.values()))))
    return Checkpoint(
        encoder=encoder.eval().requires_grad_(False),
        family=family.name,
        tokenizer=tokenizer.path if tokenizer else None,
        tokenizer_changes=tokenizer.changes if tokenizer else {},
        max_text_length=int(min(outer.texts.tokens, encoder.config.max_length)),
        files=tuple(dict.fromkeys(files)),
        prompts=outer.prompts,
        ignored_keys=tuple(dict.fromkeys(ignore_keys)),
        notes=(
            *outer.notes,
            *reading.notes(encoder),
            *_folder_notes(inner, encoder),
            *(tokenizer.notes if tokenizer else _no_tokenizer_note(encoder)),
        ),
    )


def _config(folder: Path, ignore_keys: Collection[str]) -> dict[str, Any]:
    """What config.json says, without the keys to ignore."""
    path = folder / "config.json"
    if not path.exists() and (folder / ADAPTER).exists():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER}) without its model, {base}; merge the two with peft, "
            "PeftModel.from_pretrained(model, folder).merge_and_unload(), and save what comes out"
        )
    raw = read_json(path)
    absent = [key for key in ignore_keys if key not in raw]
    if absent:
        raise CheckpointError(f"config.json has no {', '.join(absent)} to ignore, only {', '.join(raw)}")
    return {key: value for key, value in raw.items() if key not in ignore_keys}


def _family(raw: dict[str, Any]) -> Family:
    """By `model_type`; by `architectures` where several families have that type, or where the config names none."""
    model_type = raw.get("model_type")
    of_type = [each for each in FAMILIES.values() if model_type in (None, each.name, *each.other_types)]
    try:
        names = architectures(raw) if len(of_type) > 1 else []
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    by_name = [each for each in of_type if any(name in each.heads for name in names)]
    found = by_name or (of_type if model_type is not None else [])
    if found:
        return found[0]
    also = f" and architectures={names!r}" if names else ""
    raise CheckpointError(f"config.json: model_type={model_type!r}{also} is not supported, only {', '.join(FAMILIES)}")


@dataclass
class Reading:
    """A transformer's folder while it is read."""

    family: Family
    raw: dict[str, Any]
    weights: StoredWeights
    outer: SentenceFolder  # what lies around it
    max_length: int | None = None  # of rows, if fewer tokens than the model could take
    left_out: Counter[str] = field(default_factory=Counter)  # weights, by the beginning of their names

    def unweighted(self) -> Encoder:
        """The encoder that the config describes, with its constants but without storage for its weights."""
        shapes = self.weights.shapes()
        try:
            _check_sizes(self.family.keys.read(self.raw), shapes.values())
            config = self.family.read(self.raw, self.outer.pooling, shapes)
            config = _shortened(with_scores(config, self.raw, self.outer.activation), self.max_length)
            if len(config.layers) > max(DEEPEST, len(shapes)):
                raise ValueError(
                    f"config.json says {len(config.layers)} layers, but there are only {len(shapes)} weights"
                )
            with torch.device("meta"):
                return Encoder(config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(str(error)) from None

    def assign(self, encoder: Encoder, layers: Mapping[int, StoredWeights]) -> None:
        """Gives the encoder its weights, and those of the layers behind its pooling."""
        try:
            known = {name for name, _ in encoder.named_parameters()}
            weights = self._weights(self.family.head(self.raw))
            useful = (each for each in weights if each.name in known or each.name not in self.family.spare)
            _assign(encoder, chain(useful, _of_layers(layers)))
        except CheckpointError as error:
            unknown = ", ".join(self._unknown_architectures())
            hint = f"; {unknown} is no class that is known here, and was read as the encoder alone" if unknown else ""
            raise CheckpointError(f"{error}{hint}") from None

    def _weights(self, head: Head | None) -> Iterator["Weight"]:
        for published, whole in self.weights.read():
            try:
                parts = list(self.family.translate(published, whole, head))
            except (IndexError, RuntimeError):  # too few axes to be taken apart
                raise CheckpointError(f"weight {published} has shape {list(whole.shape)}, too few axes") from None
            if not parts:
                self.left_out[self.family.beside_of(published) or ""] += 1
            for name, tensor in parts:
                if not (self.outer.pooling and name.startswith("head.")):  # which stands in place of a head
                    yield Weight(published, name, tensor)

    def _unknown_architectures(self) -> list[str]:
        return [name for name in architectures(self.raw) if name not in self.family.heads]

    def notes(self, encoder: Encoder) -> Iterator[str]:
        """What of the config and of the weights is not in the encoder."""
        if self.outer.pooling and self.family.head(self.raw):
            yield "left out: the head of config.json's architectures, because modules.json pools"
        if unknown := self._unknown_architectures():
            yield f"architectures names {', '.join(unknown)}, which is not known here: only the encoder is read"
        if has_code(self.raw):
            yield "auto_map names code that came with the folder; it was not run, only the weights were read"
        by_kind: dict[str, list[str]] = {}
        for beginning, number in self.left_out.items():
            if kind := self.family.beside.get(beginning):
                by_kind.setdefault(kind, []).append(f"{number} of {beginning}*")
        yield from (f"left out: {kind} (weights: {', '.join(parts)})" for kind, parts in by_kind.items())
        if isinstance(encoder.config.head, LabelsConfig):
            note = labels_note(self.family.keys.read(self.raw), encoder.config.head.names)
            yield from [note] if note else []


def _folder_notes(folder: Path, encoder: Encoder) -> Iterator[str]:
    if (folder / ADAPTER).exists():
        yield f"left out: the adapter of {ADAPTER}; to have it in the model, merge it first (peft: merge_and_unload())"


def _no_tokenizer_note(encoder: Encoder) -> Iterator[str]:
    if encoder.config.vocabulary:
        yield "there is no tokenizer.json: the model takes token ids, no texts"


def _check_sizes(settings: Mapping[str, Any], shapes: Iterable[Sequence[int]]) -> None:
    """Refuses numbers that no weight can bear out, before anything of such a size is made."""
    largest = max([LONGEST, *(size for shape in shapes for size in shape)])
    for key, value in settings.items():
        if isinstance(value, int) and value > largest:
            raise ValueError(
                f"config.json: {key}={value}, but the largest size that a weight could bear out is {largest}"
            )


def _shortened(config: EncoderConfig, max_length: int | None) -> EncoderConfig:
    """The same for shorter rows: their answers are the same, and less must be proven."""
    if max_length is None:
        return config
    if not 1 <= max_length <= config.max_length or isinstance(config.inputs, ImagesConfig):
        takes = f"the model takes rows of {'exactly' if isinstance(config.inputs, ImagesConfig) else 'up to'}"
        raise ValueError(f"max_length {max_length} cannot be: {takes} {config.max_length} tokens")
    return replace(config, max_length=max_length)


@dataclass(frozen=True)
class Weight:
    """A weight by its published name and by ours."""

    published: str
    name: str
    tensor: Tensor


def _of_layers(layers: Mapping[int, StoredWeights]) -> Iterator[Weight]:
    """Those of the layers behind the pooling, by their numbers."""
    for number, layer in layers.items():
        for published, tensor in layer.read():
            name = f"head.layers.{number}.{published.removeprefix('norm.')}"
            yield Weight(f"{layer.files[0].parent.name}/{published}", name, tensor)


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
    # Of the smallest and the largest: to ask all numbers would take as much memory again.
    if tensor.numel() and not (ends := torch.stack(tensor.float().aminmax())).abs().max() <= LARGEST_WEIGHT:
        held = f"{ends[ends.abs().argmax()]:.1e}" if ends.isfinite().all() else "NaN or infinity"
        raise CheckpointError(
            f"weight {weight.published} holds {held}, expected numbers up to {LARGEST_WEIGHT:.0e}; the file is damaged"
        )
