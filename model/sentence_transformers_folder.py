"""Folders of sentence-transformers: a transformer, and what is done with its hidden vectors.

modules.json                        the modules in order, each with its folder
config_sentence_transformers.json   prompts
1_Pooling/config.json
2_Dense/config.json, 2_Dense/model.safetensors
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from heed.model.checkpoint_files import CheckpointError, read_json
from heed.model.feed_forward import Activation
from heed.model.pooling import DenseConfig, PoolingConfig, PoolingMode

# The first of these that is there counts, as in sentence-transformers; only the first is still written.
SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

ACTIVATIONS: dict[str, Activation | None] = {
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": None,
}


@dataclass(frozen=True)
class Prompts:
    """What callers may have put before a text, by name, and what is put there if they name none."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None  # its name


@dataclass(frozen=True)
class SentenceFolder:
    """What a folder says of itself."""

    transformer: Path  # the folder with config.json and the weights
    pooling: PoolingConfig | None = None
    dense: tuple[Path, ...] = ()  # the folders with the weights of `pooling.dense`
    prompts: Prompts = Prompts()
    files: tuple[Path, ...] = ()  # all that was read


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """A folder without modules.json is the transformer's own.

    Raises:
        CheckpointError: the modules are others than Transformer → Pooling (→ Dense ...) (→ Normalize), or one has
            settings that are not computed here.
    """
    listing = folder / "modules.json"
    if not listing.exists():
        return SentenceFolder(folder)
    kinds, paths = _modules(listing)
    dense = tuple(path for kind, path in zip(kinds, paths, strict=True) if kind == "Dense")
    unit_length = kinds[-1:] == ["Normalize"]
    if kinds not in (
        ["Transformer"],
        ["Transformer", "Pooling"] + ["Dense"] * len(dense) + ["Normalize"] * unit_length,
    ):
        raise CheckpointError(
            f"{listing}: modules {' → '.join(kinds)} are not supported, "
            "only Transformer → Pooling (→ Dense) (→ Normalize)"
        )
    settings = folder / "config_sentence_transformers.json"
    prompts = _prompts(settings)
    files = [listing, settings, *(path / "config.json" for path in paths[1 : 2 + len(dense)])]
    pooling = None
    if len(kinds) > 1:
        layers = tuple(_dense(path / "config.json") for path in dense)
        pooling = PoolingConfig(_pooling_mode(paths[1] / "config.json"), unit_length, layers)
        _check_prompts_are_pooled(paths[1] / "config.json", prompts)
    elif prompts.default is not None:
        raise CheckpointError(f"{settings}: default_prompt_name={prompts.default!r} is supported for embeddings only")
    return SentenceFolder(paths[0], pooling, dense, prompts, tuple(path for path in files if path.exists()))


def _modules(listing: Path) -> tuple[list[str], list[Path]]:
    """Their kinds and folders, in order."""
    folder = listing.parent
    try:
        modules = json.loads(listing.read_text(encoding="utf-8"))
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        paths = [folder / module["path"] for module in modules]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{listing} is not a list of sentence-transformers modules: {error!r}") from None
    for path in paths:
        if not path.is_relative_to(folder) or ".." in path.relative_to(folder).parts:
            raise CheckpointError(f"{listing}: {path} is not inside the folder")
    return kinds, paths


def _prompts(path: Path) -> Prompts:
    settings = read_json(path) if path.exists() else {}
    texts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CheckpointError(f"{path}: prompts must be texts by name")
    if default is not None and default not in list(texts):
        raise CheckpointError(f"{path}: default_prompt_name={default!r} is none of the prompts {sorted(texts)}")
    return Prompts(texts, default)


def _check_prompts_are_pooled(path: Path, prompts: Prompts) -> None:
    """Raises CheckpointError if the pooling is to leave out the tokens of prompts."""
    if read_json(path).get("include_prompt") is False and any(prompts.texts.values()):
        raise CheckpointError(
            f"{path}: include_prompt=false is not supported beside prompts; without the prompts in "
            "config_sentence_transformers.json the folder can be exported"
        )


def _pooling_mode(path: Path) -> PoolingMode:
    config = read_json(path)
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
    return cast(PoolingMode, mode)


def _dense(path: Path) -> DenseConfig:
    config: dict[str, Any] = {
        "activation_function": "torch.nn.modules.activation.Tanh",
        "bias": True,
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
        "out_features": None,
        "use_residual": False,
    } | read_json(path)
    supported: dict[str, list[Any]] = {
        "activation_function": list(ACTIVATIONS),
        "bias": [True, False],
        "module_input_name": ["sentence_embedding"],
        "module_output_name": ["sentence_embedding", None],
        "use_residual": [False],
    }
    for key, values in supported.items():
        if config[key] not in values:
            raise CheckpointError(f"{path}: {key}={config[key]!r} is not supported, only {', '.join(map(str, values))}")
    try:
        return DenseConfig(config["out_features"], ACTIVATIONS[config["activation_function"]], config["bias"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def text_limit(folder: Path) -> tuple[float, list[Path]]:
    """How many tokens of a text the transformer's folder allows, by sentence-transformers' own settings and by those
    of its tokenizer; and the files that say so."""
    limits, files = [float("inf")], []
    sentence = next((name for name in SETTINGS if (folder / name).exists()), SETTINGS[0])
    for name, key in ((sentence, "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        path = folder / name
        if not path.exists():
            continue
        files.append(path)
        settings = read_json(path)
        if name == sentence and settings.get("do_lower_case"):
            raise CheckpointError(f"{path}: do_lower_case=true is not supported, let tokenizer.json do it")
        if isinstance(settings.get(key), int | float) and settings[key] >= 1:
            limits.append(settings[key])
    return min(limits), files
