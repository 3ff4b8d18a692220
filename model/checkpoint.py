"""Loads published checkpoints: folders in the Hugging Face layout, sentence-transformers folders included.

Weights come from safetensors only. A pickle can run code when it is read, so it is refused.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import EncoderConfig, PoolingConfig, PoolingMode
from model.encoder import Encoder
from model.families import FAMILIES, Family, Head

_INDEX = "model.safetensors.index.json"
_SETTINGS = ("config.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json", _INDEX)


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded; the message says what is wrong and what would help."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with what belongs to it: a published one, loaded, or one's own."""

    encoder: Encoder  # float32, in evaluation mode
    family: str = "own"
    tokenizer: Path | None = None  # tokenizer.json
    max_text_length: int = 0  # tokens of one text, special tokens included; 0: as many as the model takes
    files: tuple[Path, ...] = ()  # all that was read


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Loads a folder with `config.json`, `*.safetensors` and, where there is text, `tokenizer.json`.

    Raises:
        CheckpointError: something is missing, damaged, in conflict or not supported; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a checkpoint folder with config.json and *.safetensors")
    inner, pooling = _sentence_modules(folder)
    raw = _read_json(inner / "config.json")
    family = _family(raw)
    encoder = _unweighted(family, raw, pooling)
    weights = _weight_files(inner)
    _assign(encoder, family, family.head(raw.get("architectures")), weights)
    settings = [folder / "modules.json", *folder.glob("*_Pooling/config.json"), *(inner / name for name in _SETTINGS)]
    return Checkpoint(
        encoder=encoder.eval().requires_grad_(False),
        family=family.name,
        tokenizer=_tokenizer(inner),
        max_text_length=_max_text_length(inner, encoder.config),
        files=(*(path for path in settings if path.exists()), *weights),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def _family(raw: dict[str, Any]) -> Family:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"config.json: model_type={model_type!r} is not supported, only {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _unweighted(family: Family, raw: dict[str, Any], pooling: PoolingConfig | None) -> Encoder:
    """The encoder that a config describes, with its constants but without storage for its weights."""
    try:
        with torch.device("meta"):
            return Encoder(family.read(raw, pooling))
    except (TypeError, ValueError) as error:
        raise CheckpointError(str(error)) from None


def _sentence_modules(folder: Path) -> tuple[Path, PoolingConfig | None]:
    """The transformer's folder, and the pooling that a sentence-transformers folder asks for."""
    listing = folder / "modules.json"
    if not listing.exists():
        return folder, None
    try:
        modules = json.loads(listing.read_text(encoding="utf-8"))
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        paths = [folder / module["path"] for module in modules]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{listing} is not a list of sentence-transformers modules: {error!r}") from None
    for path in paths:
        if not path.is_relative_to(folder) or ".." in path.relative_to(folder).parts:
            raise CheckpointError(f"{listing}: {path} is not inside the folder")
    if kinds not in (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{listing}: modules {' → '.join(kinds)} are not supported, only Transformer → Pooling (→ Normalize)"
        )
    _refuse_prompts(folder)
    if len(kinds) == 1:
        return paths[0], None
    return paths[0], _pooling(paths[1] / "config.json", unit_length=len(kinds) == 3)


def _refuse_prompts(folder: Path) -> None:
    """A prompt that sentence-transformers puts before every text would be part of the answer."""
    path = folder / "config_sentence_transformers.json"
    prompt = _read_json(path).get("default_prompt_name") if path.exists() else None
    if prompt is not None:
        raise CheckpointError(f"{path}: default_prompt_name={prompt!r} is not supported")


def _pooling(path: Path, unit_length: bool) -> PoolingConfig:
    config = _read_json(path)
    prefix = "pooling_mode_"
    modes = [
        key.removeprefix(prefix).removesuffix("_tokens").removesuffix("_token")
        for key in config
        if key.startswith(prefix) and config[key] is True
    ]
    if "pooling_mode" in config:  # one name, or several joined by "+"
        modes = str(config["pooling_mode"]).split("+")
    (mode,) = modes if len(modes) == 1 else ("+".join(modes) or "none",)
    if mode not in get_args(PoolingMode):
        raise CheckpointError(f"{path}: pooling {mode} is not supported, only {', '.join(get_args(PoolingMode))}")
    return PoolingConfig(cast(PoolingMode, mode), unit_length)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index} has no weight_map of file names")
        files = [folder / Path(name).name for name in sorted(set(shards.values()))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.exists():
            pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
            if pickled:
                raise CheckpointError(
                    f"{folder} has its weights as a pickle ({pickled[0]}), which can run code when it is read; "
                    "save it as safetensors first (transformers: model.save_pretrained(folder))"
                )
            raise CheckpointError(f"{file} is missing")
    return files


def _published_weights(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dictionary
                    yield name, weights.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or truncated: {error}") from None


def _assign(encoder: Encoder, family: Family, head: Head | None, files: list[Path]) -> None:
    """Gives the encoder its weights; every one of them must be there and have the shape that the config says."""
    expected = dict(encoder.named_parameters())
    state: dict[str, Tensor] = {}
    for published, tensor in _published_weights(files):
        for name, part in family.translate(published, tensor, head):
            if name not in expected:
                raise CheckpointError(f"weight {published} has no place in the model that config.json describes")
            if name in state:
                raise CheckpointError(f"weight {published} is there twice, with and without the prefix {family.prefix}")
            _check_weight(published, part, expected[name])
            state[name] = part.float()
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise CheckpointError(f"the weights lack {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1)))
    encoder.load_state_dict(state, assign=True)


def _check_weight(published: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"weight {published} has shape {list(tensor.shape)}, config.json says {list(expected.shape)}"
        )
    if not tensor.is_floating_point():
        raise CheckpointError(f"weight {published} has type {tensor.dtype}, expected a float type")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"weight {published} holds NaN or infinity")


def _tokenizer(folder: Path) -> Path | None:
    path = folder / "tokenizer.json"
    if path.exists():
        return path
    for name in ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"):
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder} has {name} but no tokenizer.json; "
                "make one with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
    return None


def _max_text_length(inner: Path, config: EncoderConfig) -> int:
    """The folder's own limit for texts: sentence-transformers' if it has one, else the tokenizer's."""
    limits: list[float] = [config.max_length]
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        settings = _read_json(inner / name) if (inner / name).exists() else {}
        if name == "sentence_bert_config.json" and settings.get("do_lower_case"):
            raise CheckpointError(f"{inner / name}: do_lower_case=true is not supported, let tokenizer.json do it")
        if isinstance(settings.get(key), int | float) and settings[key] >= 1:
            limits.append(settings[key])
    return int(min(limits))
