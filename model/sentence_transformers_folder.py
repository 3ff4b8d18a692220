"""Folders of sentence-transformers, 2.x to 6.x: a transformer, and what is done with its hidden vectors.

modules.json                        the modules in order, each with its folder
config_sentence_transformers.json   prompts, how many values of a vector are kept, a cross-encoder's activation
sentence_bert_config.json           in the transformer's folder: how texts are cut
1_Pooling/config.json
2_Dense/config.json, 2_Dense/model.safetensors

Every key of these files is honoured, known not to matter, or refused. What counts where a key is left out, or where
two files disagree, is what sentence-transformers 6 makes of it.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from heed.model.checkpoint_files import CheckpointError, read_json
from heed.model.feed_forward import Activation
from heed.model.norms import NormConfig
from heed.model.pooling import DenseConfig, PoolingConfig, PoolingMode, UnitLengthConfig

Json = dict[str, Any]


@dataclass(frozen=True)
class FileKeys:
    """What becomes of the keys of an object in a file; any other key is refused, because it might matter."""

    honoured: Mapping[str, Any] = field(default_factory=dict)  # with what counts where it is left out
    neutral: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # the values that are computed here

    def read(self, settings: object, where: str) -> Json:
        """The keys that count, each with a value.

        Raises:
            CheckpointError: a key is not known, or has a value that is not computed here.
        """
        if not isinstance(settings, dict):
            raise CheckpointError(f"{where} holds {type(settings).__name__}, expected an object")
        for key, values in self.fixed.items():
            if key in settings and settings[key] not in values:
                known = ", ".join(map(repr, values))
                raise CheckpointError(f"{where}: {key}={settings[key]!r} is not supported, only {known}")
        unknown = settings.keys() - self.honoured.keys() - self.neutral - self.fixed.keys()
        if unknown:
            told = ", ".join(f"{key}={settings[key]!r}" for key in settings if key in unknown)
            raise CheckpointError(
                f"{where}: {told} is not known to this version and might change the answers; "
                "if it does not, take it out of the file"
            )
        return dict(self.honoured) | {key: value for key, value in settings.items() if key in self.honoured}


# `kwargs` names arguments of `encode` that go on to the module; there are none.
MODULE = FileKeys({"path": None, "type": None}, frozenset({"idx", "kwargs", "name"}))

FOLDER = FileKeys(
    honoured={"prompts": None, "default_prompt_name": None, "truncate_dim": None, "activation_fn": None},
    neutral=frozenset({"__version__", "similarity_fn_name", "keep_in_fp32_modules"}),
    fixed={"model_type": ("SentenceTransformer", "CrossEncoder", None)},
)

# What is handed over when the parts of the transformer are loaded, by the old names and the new ones.
TOKENIZER_ARGUMENTS = FileKeys({"model_max_length": None}, frozenset({"padding_side", "trust_remote_code", "use_fast"}))
MODEL_ARGUMENTS = FileKeys(
    neutral=frozenset({"attn_implementation", "device_map", "dtype", "torch_dtype", "trust_remote_code"})
)
CONFIG_ARGUMENTS = FileKeys(neutral=frozenset({"trust_remote_code", "use_cache"}))
ARGUMENTS = {
    "tokenizer_args": TOKENIZER_ARGUMENTS,
    "processor_kwargs": TOKENIZER_ARGUMENTS,
    "model_args": MODEL_ARGUMENTS,
    "model_kwargs": MODEL_ARGUMENTS,
    "config_args": CONFIG_ARGUMENTS,
    "config_kwargs": CONFIG_ARGUMENTS,
}
# The first of these that is there and holds a key counts; only the first is still written.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TRANSFORMER = FileKeys(
    honoured={
        "max_seq_length": None,
        "do_lower_case": False,
        "processing_kwargs": None,
        **dict.fromkeys(ARGUMENTS),
    },
    neutral=frozenset({"unpad_inputs"}),
    fixed={
        "transformer_task": ("feature-extraction", "sequence-classification"),
        "modality_config": (
            {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            {"text": {"method": "forward", "method_output_name": "logits"}},
        ),
        "module_output_name": ("token_embeddings", "scores"),
        "query_length": (None,),
        "document_length": (None,),
        "query_expansion": (None,),
        "tokenizer_name_or_path": (None,),
    },
)
# What is said with every text.
PROCESSING = FileKeys({"text": None, "common": None}, frozenset({"audio", "chat_template", "image", "video"}))
TEXT_ARGUMENTS = FileKeys(
    {"max_length": None},
    frozenset({"logits_to_keep", "padding", "padding_side", "pad_to_multiple_of", "return_tensors", "verbose"}),
    {"truncation": (True, "longest_first"), "add_special_tokens": (True,)},
)

# In the order in which the vectors of several are put end to end.
POOLING_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING = FileKeys(
    honoured={"pooling_mode": None, "include_prompt": True} | dict.fromkeys(POOLING_FLAGS, False),
    neutral=frozenset({"embedding_dimension", "word_embedding_dimension"}),  # the weights say it
)

ACTIVATIONS: dict[str, Activation | None] = {"GELU": "gelu", "ReLU": "relu", "SiLU": "silu", "Tanh": "tanh"}
ACTIVATION_NAMES: dict[str, Activation | None] = {
    **{f"torch.nn.modules.activation.{name}": activation for name, activation in ACTIVATIONS.items()},
    "torch.nn.modules.linear.Identity": None,
}
OF_THE_TEXT = ("sentence_embedding",)
DENSE = FileKeys(
    honoured={
        "activation_function": "torch.nn.modules.activation.Tanh",
        "bias": True,
        "out_features": None,
        "use_residual": False,
    },
    neutral=frozenset({"in_features"}),  # the weights say it
    fixed={
        "activation_function": tuple(ACTIVATION_NAMES),
        "bias": (True, False),
        "use_residual": (True, False),
        "module_input_name": OF_THE_TEXT,
        "module_output_name": (*OF_THE_TEXT, None),
    },
)
LAYER_NORM = FileKeys(neutral=frozenset({"dimension"}))
DROPOUT = FileKeys(neutral=frozenset({"dropout"}))  # there is none at inference
NORMALIZE = FileKeys(fixed={"module_input_name": OF_THE_TEXT, "module_output_name": (*OF_THE_TEXT, None)})


@dataclass(frozen=True)
class Prompts:
    """What callers may have put before a text, by name, and what is put there if they name none."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None  # its name


@dataclass(frozen=True)
class TextLimits:
    """How texts are cut, and what is done with them before the tokenizer has them."""

    tokens: float = math.inf  # of one text, special ones included
    lower_case: bool = False


@dataclass(frozen=True)
class SentenceFolder:
    """What a folder says of itself."""

    transformer: Path  # the folder with config.json and the weights
    pooling: PoolingConfig | None = None
    weighted: Mapping[int, Path] = field(default_factory=dict)  # the folders with the weights of `pooling.layers`
    prompts: Prompts = Prompts()
    texts: TextLimits = TextLimits()
    activation: str | None = None  # that of a cross-encoder's scores, as its config names it
    files: tuple[Path, ...] = ()  # all that was read
    notes: tuple[str, ...] = ()  # what of it is not in the model: for people


@dataclass(frozen=True)
class _Module:
    kind: str
    path: Path

    def settings(self, keys: FileKeys, optional: bool = False) -> Json:
        config = self.path / "config.json"
        return keys.read({} if optional and not config.exists() else read_json(config), str(config))


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """A folder without modules.json is the transformer's own.

    Raises:
        CheckpointError: the modules are others than Transformer → Pooling → any of Dense, LayerNorm, Dropout and
            Normalize, or one has settings that are not computed here.
    """
    listing = folder / "modules.json"
    if not listing.exists():
        return SentenceFolder(folder, texts=TextLimits(_tokenizer_limit(folder)), files=_tokenizer_files(folder))
    transformer, *others = _modules(listing)
    path = folder / "config_sentence_transformers.json"
    settings = FOLDER.read(read_json(path) if path.exists() else {}, str(path))
    pooling, weighted = _pooling(others, settings["truncate_dim"], path)
    prompts = _prompts(settings, path)
    notes: list[str] = []
    if pooling is None and prompts.default is not None:
        raise CheckpointError(f"{path}: default_prompt_name={prompts.default!r} is supported for embeddings only")
    if pooling and not others[0].settings(POOLING)["include_prompt"]:
        prompts, notes = _unpooled_prompts(prompts, others[0].path / "config.json")
    texts, read = _text_limits(transformer.path)
    files = (listing, path, *(module.path / "config.json" for module in others), *read)
    return SentenceFolder(
        transformer.path, pooling, weighted, prompts, texts, settings["activation_fn"],
        tuple(path for path in files if path.exists()), tuple(notes),
    )  # fmt: skip


def _modules(listing: Path) -> list[_Module]:
    """In order, a Transformer first."""
    folder = listing.parent
    try:
        listed = [
            (each, each["type"].rpartition("."), folder / each["path"]) for each in json.loads(listing.read_bytes())
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{listing} is not a list of sentence-transformers modules: {error!r}") from None
    for settings, (package, _, _), path in listed:
        MODULE.read(settings, str(listing))
        if package.partition(".")[0] != "sentence_transformers":
            raise CheckpointError(f"{listing}: {settings['type']} is code that came with the folder; it is never run")
        if not path.is_relative_to(folder) or ".." in path.relative_to(folder).parts:
            raise CheckpointError(f"{listing}: {path} is not inside the folder")
    modules = [_Module(kind, path) for _, (_, _, kind), path in listed]
    kinds = [module.kind for module in modules]
    if kinds[:1] != ["Transformer"] or kinds[1:2] not in ([], ["Pooling"]) or not set(kinds[2:]) <= LAYERS.keys():
        raise CheckpointError(
            f"{listing}: modules {' → '.join(kinds)} are not supported, "
            f"only Transformer → Pooling → any of {', '.join(LAYERS)}"
        )
    return modules


def _pooling(modules: list[_Module], dimensions: object, source: Path) -> tuple[PoolingConfig | None, dict[int, Path]]:
    """Of a Pooling and the modules behind it; and the folders with the weights of its layers."""
    if not modules:
        return None, {}
    first, *others = modules
    layers: list[DenseConfig | NormConfig | UnitLengthConfig] = []
    weighted: dict[int, Path] = {}
    for module in others:
        layer = LAYERS[module.kind](module)
        if layer is None:
            continue
        if not isinstance(layer, UnitLengthConfig):
            weighted[len(layers)] = module.path
        layers.append(layer)
    unit_length = layers[-1:] == [UnitLengthConfig()]
    modes = _pooling_modes(first)
    try:
        return (
            PoolingConfig(
                modes[0] if len(modes) == 1 else modes,
                unit_length,
                tuple(layers[:-1] if unit_length else layers),
                cast(int | None, dimensions),
            ),
            weighted,
        )
    except ValueError as error:
        raise CheckpointError(f"{source}: truncate_dim={dimensions!r}: {error}") from None


def _pooling_modes(module: _Module) -> tuple[PoolingMode, ...]:
    settings = module.settings(POOLING)
    mode = settings["pooling_mode"]
    if mode is None:
        return tuple(mode for flag, mode in POOLING_FLAGS.items() if settings[flag]) or ("mean",)
    modes = mode if isinstance(mode, list) else [mode]
    known = get_args(PoolingMode)
    if not modes or any(each not in list(known) for each in modes):
        path = module.path / "config.json"
        raise CheckpointError(f"{path}: pooling_mode={mode!r} is not supported, only {', '.join(known)}")
    return tuple(modes)


def _dense(module: _Module) -> DenseConfig:
    settings = module.settings(DENSE)
    try:
        return DenseConfig(
            settings["out_features"],
            ACTIVATION_NAMES[settings["activation_function"]],
            settings["bias"],
            settings["use_residual"],
        )
    except ValueError as error:
        raise CheckpointError(f"{module.path / 'config.json'}: {error}") from None


def _layer_norm(module: _Module) -> NormConfig:
    module.settings(LAYER_NORM)
    return NormConfig(epsilon=1e-5)  # torch's own, which no key changes


def _dropout(module: _Module) -> None:
    module.settings(DROPOUT, optional=True)


def _normalize(module: _Module) -> UnitLengthConfig:
    module.settings(NORMALIZE, optional=True)
    return UnitLengthConfig()


LAYERS: dict[str, Callable[[_Module], DenseConfig | NormConfig | UnitLengthConfig | None]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Dropout": _dropout,
    "Normalize": _normalize,
}


def _prompts(settings: Json, path: Path) -> Prompts:
    texts, default = settings["prompts"] or {}, settings["default_prompt_name"]
    if not isinstance(texts, dict) or not all(isinstance(text, str | None) for text in texts.values()):
        raise CheckpointError(f"{path}: prompts must be texts by name")
    if default is not None and default not in list(texts):
        raise CheckpointError(f"{path}: default_prompt_name={default!r} is none of the prompts {sorted(texts)}")
    return Prompts({name: text or "" for name, text in texts.items()}, default)


def _unpooled_prompts(prompts: Prompts, path: Path) -> tuple[Prompts, list[str]]:
    """The prompts that can be served where the tokens of prompts are not pooled: empty ones."""
    left_out = [name for name, text in prompts.texts.items() if text]
    if prompts.default in left_out:
        raise CheckpointError(
            f"{path}: include_prompt=false is not supported beside the default prompt {prompts.default!r}: every text "
            "has it, and its tokens would be pooled; without default_prompt_name the folder can be exported"
        )
    kept = {name: text for name, text in prompts.texts.items() if not text}
    note = f"left out: the prompts {', '.join(left_out)}, because {path.parent.name} does not pool their tokens"
    return Prompts(kept, prompts.default), [note] * bool(left_out)


def _text_limits(folder: Path) -> tuple[TextLimits, Iterable[Path]]:
    """Of the transformer's folder, and the files that say so.

    `max_seq_length` counts before the tokenizer's own limit, and what is said with every text before both.
    """
    found = ((folder / name, read_json(folder / name)) for name in TRANSFORMER_FILES if (folder / name).exists())
    path, settings = next(((path, raw) for path, raw in found if raw), (folder / TRANSFORMER_FILES[0], {}))
    settings = TRANSFORMER.read(settings, str(path))
    arguments = [keys.read(settings[name] or {}, f"{path}: {name}") for name, keys in ARGUMENTS.items()]
    said = *(each.get("model_max_length") for each in arguments), settings["max_seq_length"]
    limit = next(filter(None, map(_limit, said)), None) or _tokenizer_limit(folder)
    for with_each in _said_with_texts(settings["processing_kwargs"] or {}, f"{path}: processing_kwargs"):
        limit = with_each or limit
    return TextLimits(limit, bool(settings["do_lower_case"])), (path, *_tokenizer_files(folder))


def _said_with_texts(settings: object, where: str) -> Iterator[float | None]:
    """The limits on texts among the arguments of each call of the tokenizer; the later ones count."""
    parts = PROCESSING.read(settings, where)
    for name in ("text", "common"):
        yield _limit(TEXT_ARGUMENTS.read(parts[name] or {}, f"{where}: {name}")["max_length"])


def _tokenizer_files(folder: Path) -> tuple[Path, ...]:
    path = folder / "tokenizer_config.json"
    return (path,) if path.exists() else ()


def _tokenizer_limit(folder: Path) -> float:
    """By the tokenizer's own settings."""
    settings = [read_json(path) for path in _tokenizer_files(folder)]
    limits = (_limit(each.get("model_max_length", each.get("max_len"))) for each in settings)
    return next(limits, None) or math.inf


def _limit(value: object) -> float | None:
    return value if isinstance(value, int | float) and value >= 1 else None
