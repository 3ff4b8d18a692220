"""Published model families: how their configs and weight names read in the words of this package.

A config key is honoured, neutral (it cannot change an answer at inference) or fixed to the values that this
package computes. Any other key is refused by name, because it might matter.
"""

import re
from dataclasses import dataclass
from typing import Any

from model.blocks import Activation, FeedForwardConfig, NormConfig
from model.config import AttentionConfig, EncoderConfig, LayerConfig, LearnedConfig, TokensConfig
from model.pooling import PoolingConfig
from model.positions import PositionRule, RuleKind

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

HONOURED = {
    "architectures",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "type_vocab_size",
    "vocab_size",
}

# Training, generation and bookkeeping.
NEUTRAL = {
    "_name_or_path",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "directionality",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "label2id",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({}, None),
}


@dataclass(frozen=True)
class Family:
    """One family: its prefix in weight names, the architectures whose encoder is read, and its position rule."""

    name: str
    prefix: str
    architectures: tuple[str, ...]
    position_rule: RuleKind
    norm_epsilon: float  # what the family means when the config leaves it out
    padding_id: int
    token_types: int


def _roberta(name: str, class_prefix: str) -> Family:
    return Family(
        name=name,
        prefix="roberta.",
        architectures=(f"{class_prefix}Model", f"{class_prefix}ForMaskedLM"),
        position_rule="counted",
        norm_epsilon=1e-12,
        padding_id=1,
        token_types=2,
    )


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="bert",
            prefix="bert.",
            architectures=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
            position_rule="column",
            norm_epsilon=1e-12,
            padding_id=0,
            token_types=2,
        ),
        _roberta("roberta", "Roberta"),
        _roberta("xlm-roberta", "XLMRoberta"),
        _roberta("camembert", "Camembert"),
    )
}


def encoder_config(family: Family, config: dict[str, Any], pooling: PoolingConfig | None = None) -> EncoderConfig:
    """Translates a `config.json`.

    Raises:
        ValueError: a key is missing, unknown or has a value that this package does not compute.
    """
    for key, value in config.items():
        if key in FIXED and value not in FIXED[key]:
            raise ValueError(f"config.json: {key}={value!r} is not supported, only {FIXED[key][0]!r}")
        if key not in HONOURED | NEUTRAL | FIXED.keys():
            raise ValueError(f"config.json: {key}={value!r} is not known to this version and might change the answers")
    missing = [key for key in sorted(_REQUIRED) if key not in config]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    if config["hidden_act"] not in list(ACTIVATIONS):  # a list: what comes may not be hashable
        raise ValueError(f"config.json: hidden_act={config['hidden_act']!r} is none of {', '.join(ACTIVATIONS)}")
    padding_id = config.get("pad_token_id", family.padding_id)
    rule = PositionRule(
        family.position_rule, 0 if padding_id is None and family.position_rule == "column" else padding_id
    )
    norm = NormConfig(epsilon=config.get("layer_norm_eps", family.norm_epsilon))
    layer = LayerConfig(
        AttentionConfig(config["num_attention_heads"]),
        FeedForwardConfig(config["intermediate_size"], ACTIVATIONS[config["hidden_act"]]),
        norm,
    )
    rows = config["max_position_embeddings"]
    return EncoderConfig(
        inputs=TokensConfig(config["vocab_size"], config.get("type_vocab_size", family.token_types)),
        width=config["hidden_size"],
        layers=(layer,) * config["num_hidden_layers"],
        max_length=rows - (rule.padding_id + 1 if rule.kind == "counted" else 0),
        positions=LearnedConfig(rows),
        position_rule=rule,
        embedding_norm=norm,
        head=pooling,
    )


_REQUIRED = {
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
}

# Not part of the encoder: language-model heads, BERT's pooler (its tanh vector feeds only the heads), old buffers.
_BESIDE_THE_ENCODER = re.compile(r"^(cls\.|lm_head\.|pooler\.|embeddings\.position_ids$)")

_NAMES = [
    (r"^embeddings\.word_embeddings\.", "embeddings.inputs.tokens."),
    (r"^embeddings\.position_embeddings\.", "embeddings.positions.table."),
    (r"^embeddings\.token_type_embeddings\.", "embeddings.inputs.types."),
    (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"^encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", r"blocks.\1.attention.\2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attention.out."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"blocks.\1.attention_norm."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.feed_forward.up."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.feed_forward.down."),
    (r"^encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"blocks.\1.feed_forward_norm."),
    (r"\.gamma$", ".weight"),  # names of 2018
    (r"\.beta$", ".bias"),
]


def parameter_name(family: Family, published: str) -> str | None:
    """The encoder's name for a published weight; None for one that is not part of the encoder.

    A name that no rule knows comes back unchanged, and loading will refuse it.
    """
    name = published.removeprefix(family.prefix)
    if _BESIDE_THE_ENCODER.match(name):
        return None
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
