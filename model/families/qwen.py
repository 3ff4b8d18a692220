"""Qwen 2 and 3 (Yang et al., 2024, 2025) as embedding models and rerankers: decoders whose last token has seen all.

RMSNorm before each part, rotary positions, grouped queries, SwiGLU; Qwen 3 norms the queries and keys of each head.
What EuroBERT and Gemma have in common with them is here, too.
"""

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig
from heed.model.embeddings import TokensConfig
from heed.model.families import rotary
from heed.model.families.base import Family, Head, Weights, activation, count, flag
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.norms import NormConfig
from heed.model.patterns import Causal, Full, Pattern, Window
from heed.model.pooling import PoolingConfig

REQUIRED = frozenset({"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"})

# What a family means that leaves them out is its own business where it is not None.
OPTIONAL: Json = {
    "head_dim": None,
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    **rotary.KEYS,
}

# Dropout; and the padding id, for it is the mask that says which token is the last.
NEUTRAL = frozenset({"attention_dropout", "classifier_dropout", "pad_token_id"})

QWEN2_KEYS = Keys(
    REQUIRED,
    {
        **OPTIONAL,
        "is_causal": True,
        "layer_types": None,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    NEUTRAL,
)
QWEN3_KEYS = Keys(REQUIRED, {**QWEN2_KEYS.optional, "attention_bias": False, "head_dim": 128}, NEUTRAL)


def norm(config: Json) -> NormConfig:
    return NormConfig("rms", config["rms_norm_eps"])


def optional_count(config: Json, key: str) -> int | None:
    return None if config[key] is None else count(config, key)


def kinds_of_layers(config: Json) -> list[str]:
    """Which layers see all before them, and which a window of that.

    Raises:
        ValueError: layer_types does not name one of the two for each layer, or there is no window.
    """
    layers, windows = count(config, "num_hidden_layers"), flag(config, "use_sliding_window")
    first = config["max_window_layers"] if windows else layers
    kinds = config["layer_types"]
    if kinds is None:
        return ["full_attention" if number < first else "sliding_attention" for number in range(layers)]
    known = ["full_attention", "sliding_attention"] if windows else ["full_attention"]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise ValueError(
            f"config.json: layer_types={kinds!r} beside use_sliding_window={windows} is not {layers} times one of "
            f"{', '.join(known)}"
        )
    return kinds


def pattern(config: Json, kind: str) -> Pattern:
    """A window holds `sliding_window` tokens, the query's own among them; looking both ways, so many to each side."""
    if kind == "full_attention":
        return Causal() if flag(config, "is_causal") else Full()
    window = count(config, "sliding_window")
    return Window(window - 1) & Causal() if flag(config, "is_causal") else Window(window)


def layer(config: Json, kind: str, three: bool) -> LayerConfig:
    """
    Args:
        three: whether it is Qwen 3.
    """
    positions = rotary.read_rotary(config, default_base=10_000.0)
    return LayerConfig(
        AttentionConfig(
            count(config, "num_attention_heads"),
            pattern(config, kind),
            key_heads=optional_count(config, "num_key_value_heads"),
            head_norm=norm(config) if three else None,
            head_width=optional_count(config, "head_dim"),
            bias=flag(config, "attention_bias") if three else True,
            out_bias=None if three else False,
            rotary_base=positions.base,
            rotary_factor=positions.factor,
        ),
        FeedForwardConfig(count(config, "intermediate_size"), activation(config, "hidden_act"), gated=True, bias=False),
        norm(config),
        norm_first=True,
    )


def decoder(config: Json, layers: tuple[LayerConfig, ...], head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    """Tokens, layers, and a norm at last: what all of these families share."""
    return EncoderConfig(
        inputs=TokensConfig(count(config, "vocab_size")),
        width=count(config, "hidden_size"),
        layers=layers,
        max_length=count(config, "max_position_embeddings"),
        final_norm=norm(config),
        head=head,
    )


def qwen2(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    return decoder(config, tuple(layer(config, kind, three=False) for kind in kinds_of_layers(config)), head)


def qwen3(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    return decoder(config, tuple(layer(config, kind, three=True) for kind in kinds_of_layers(config)), head)


WEIGHTS: Weights = {
    "embed_tokens": "embeddings.inputs.tokens",
    "layers.#.input_layernorm": "blocks.#.attention_norm",
    "layers.#.self_attn.q_proj": "blocks.#.attention.query",
    "layers.#.self_attn.k_proj": "blocks.#.attention.key",
    "layers.#.self_attn.v_proj": "blocks.#.attention.value",
    "layers.#.self_attn.o_proj": "blocks.#.attention.out",
    "layers.#.self_attn.q_norm": "blocks.#.attention.query_norm.norm",
    "layers.#.self_attn.k_norm": "blocks.#.attention.key_norm.norm",
    "layers.#.post_attention_layernorm": "blocks.#.feed_forward_norm",
    "layers.#.mlp.gate_proj": "blocks.#.feed_forward.up",
    "layers.#.mlp.up_proj": "blocks.#.feed_forward.gate",
    "layers.#.mlp.down_proj": "blocks.#.feed_forward.down",
    "norm": "norm",
}

BESIDE = {"lm_head.": "the head of the language model"}

# Of the last real token. `transformers` takes the last whose id is not the padding id, which is the same one where
# padding has that id and no text ends with it.
SEQUENCE = Head(
    lambda config, names: LabelsConfig(names, per="sequence", pooling="lasttoken", bias=False), {"score": "head.out"}
)
TOKEN = Head(lambda config, names: LabelsConfig(names, per="token"), {"score": "head.out"})


def _qwen(name: str, class_prefix: str, keys: Keys) -> Family:
    return Family(
        name=name,
        prefix="model.",
        keys=keys,
        encoder=qwen2 if name == "qwen2" else qwen3,
        weights=WEIGHTS,
        heads={
            f"{class_prefix}Model": None,
            f"{class_prefix}ForCausalLM": None,
            f"{class_prefix}ForSequenceClassification": SEQUENCE,
            f"{class_prefix}ForTokenClassification": TOKEN,
        },
        beside=BESIDE,
    )


QWEN2 = _qwen("qwen2", "Qwen2", QWEN2_KEYS)
QWEN3 = _qwen("qwen3", "Qwen3", QWEN3_KEYS)
