"""What becomes of the keys of a `config.json`: each is honoured, cannot matter, or is refused by name.

What an encoder computes is said by the keys that its family reads. Any other key cannot change the numbers

- if its value says nothing: null, or empty;
- if it is about training, generation, bookkeeping, or about which outputs a call returns: `NEUTRAL`, `DROPOUT`;
- if it names the size of a weight: every weight has its place and its shape, so that no other size can be true;
- if nobody reads it: it is no attribute of any config class of `transformers`, and no code came with the folder
  (`auto_map`) that might read it.

What remains might matter: another family computes something by it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heed.model.families.transformers_names import CONFIG_KEYS, GENERATION_KEYS

Json = dict[str, Any]

# In configs of any family: what cannot change the numbers at inference.
NEUTRAL = GENERATION_KEYS | {
    # Bookkeeping.
    "_name_or_path",
    "_num_labels",
    "auto_map",  # see `has_code`
    "finetuning_task",
    "label2id",
    "name_or_path",
    "task_specific_params",
    "tokenizer_class",
    "transformers_version",
    # What makes scores of logits: see `promised_scores.py`.
    "problem_type",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    # Training, and the type of numbers in the files.
    "dtype",
    "gradient_checkpointing",
    "initializer_range",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "torch_dtype",
    # How the same numbers are computed or handed over, and which of them a call returns.
    "_attn_implementation_autoset",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "return_dict",
    "torchscript",
    "use_bfloat16",
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
    # Of a decoder's attention to an encoder.
    "cross_attention_hidden_size",
}

# Sizes of weights, as other families call them.
SIZES = frozenset(
    {
        "d_ff",
        "d_model",
        "dim",
        "emb_dim",
        "embed_dim",
        "embedding_dim",
        "embedding_size",
        "ffn_dim",
        "hidden_dim",
        "hidden_size",
        "intermediate_size",
        "n_layer",
        "n_layers",
        "num_hidden_layers",
        "num_layers",
        "pooler_output_size",
        "projection_dim",
        "type_vocab_size",
        "vocab_size",
    }
)

# As configs call it. ESM's `token_dropout` is none: it scales at inference.
DROPOUT = re.compile(r"(?!token_)(\w*_)?(dropout|drop_?path|pdrop|drop)(_prob|_rate|_p)?")

# In the config of every family; any other value would change the answers.
FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
}


@dataclass(frozen=True)
class Keys:
    """The keys that a family reads, and those that it knows to be harmless."""

    required: frozenset[str]
    # With what the family means when the config leaves them out.
    optional: Mapping[str, Any] = field(default_factory=dict)
    neutral: frozenset[str] = frozenset()  # beside `NEUTRAL`
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # beside `FIXED`
    synonyms: Mapping[str, str] = field(default_factory=dict)  # other names, which win over the family's own

    def read(self, config: Json) -> Json:
        """The keys that count, each with a value.

        Raises:
            ValueError: keys are missing, might matter, or have values that this package does not compute; the message
                names them all.
        """
        optional = {"architectures": None, "model_type": None, "id2label": None, "num_labels": None} | dict(
            self.optional
        )
        config = config | {own: config[name] for name, own in self.synonyms.items() if name in config}
        counts = self.required | optional.keys()
        others = {key: value for key, value in config.items() if key not in {*counts, *self.synonyms}}
        self._check(others)
        missing = sorted(self.required - config.keys())
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        return optional | {key: config[key] for key in config if key in counts}

    def _check(self, others: Json) -> None:
        """Raises ValueError for keys that might change the answers."""
        fixed = FIXED | dict(self.fixed)
        code = has_code(others)
        refused, unknown = [], {}
        for key, value in others.items():
            if not says_something(value):
                continue
            if key in fixed:
                if value not in fixed[key]:
                    refused.append(f"{_shown(key, value)} is not supported, only {fixed[key][0]!r}")
            elif not self._is_neutral(key) and (code or key in CONFIG_KEYS):
                unknown[key] = value
        if unknown:
            refused.append(_unknown(unknown, code))
        if refused:
            raise ValueError(f"config.json: {'; '.join(refused)}")

    def _is_neutral(self, key: str) -> bool:
        return key in self.neutral | NEUTRAL | SIZES or DROPOUT.fullmatch(key) is not None


def architectures(config: Json) -> list[str]:
    """
    Raises:
        ValueError: they are no names of classes.
    """
    value = config.get("architectures") or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config.json: architectures={value!r} is no list of names of classes")
    return names


def has_code(config: Json) -> bool:
    """Whether code came with the folder. It is never run; but it may read keys that nobody else does."""
    return says_something(config.get("auto_map"))


def says_something(value: Any) -> bool:
    """Whether a value is not null and not empty, all the way down."""
    if isinstance(value, dict):
        return any(map(says_something, value.values()))
    if isinstance(value, list):
        return any(map(says_something, value))
    return value is not None and value != ""


def _shown(key: str, value: Any) -> str:
    text = repr(value)
    return f"{key}={text if len(text) <= 80 else text[:77] + '...'}"


def _unknown(unknown: Json, code: bool) -> str:
    """The refusal of keys that might matter, with the way on."""
    what = ", ".join(_shown(key, value) for key, value in unknown.items())
    verb = "is" if len(unknown) == 1 else "are"
    they = "it does" if len(unknown) == 1 else "they do"
    options = " ".join(f"--ignore-key {key}" for key in unknown)
    if code:
        return (
            f"{what} {verb} not known to this version, and may be read by the code that auto_map names, which is "
            "never run; if the weights are those of a plain model of this family, --ignore-key auto_map passes over "
            f"what only that code reads; or if you know that {they} not change the answers, {options}"
        )
    return (
        f"{what} {verb} not known to this version and might change the answers; if you know that {they} not, "
        f"go on with {options}"
    )
