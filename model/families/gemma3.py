"""Gemma 3's text model (Gemma Team, 2025), and EmbeddingGemma (Vera et al., 2025), whose tokens see both ways.

Four norms in a layer, one before and one behind each part; windows in most layers; a table that is scaled by √D.
"""

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig
from heed.model.embeddings import TokensConfig
from heed.model.families import qwen, rotary
from heed.model.families.base import Family, Weights, activation, count, flag
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.norms import NormConfig
from heed.model.patterns import Causal, Full, Pattern, Window
from heed.model.pooling import PoolingConfig
from heed.model.score_functions import ScaledDotFor

KEYS = Keys(
    qwen.REQUIRED,
    optional={
        "attention_bias": False,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": None,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10_000.0,
        "rope_parameters": None,
        "rope_theta": 1_000_000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,  # of earlier folders, which have no layer_types
        "use_bidirectional_attention": False,
    },
    neutral=qwen.NEUTRAL | {"_sliding_window_pattern", "final_logit_softcapping"},
    fixed={"attn_logit_softcapping": (None,), "rope_scaling": (None,)},
)

# Each kind of layer, and the setting that held its rotary base before there were rope_parameters.
KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


def kinds_of_layers(config: Json) -> list[str]:
    """Which layers see all, and which see a window: in `KINDS`.

    Raises:
        ValueError: layer_types does not name a kind that is known here for each layer.
    """
    layers, kinds = count(config, "num_hidden_layers"), config["layer_types"]
    if kinds is None:
        every = count(config, "sliding_window_pattern")
        return ["sliding_attention" if number % every else "full_attention" for number in range(1, layers + 1)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in list(KINDS) for kind in kinds):
        raise ValueError(f"config.json: layer_types={kinds!r} is not {layers} times one of {', '.join(KINDS)}")
    return kinds


def pattern(config: Json, kind: str) -> Pattern:
    """A window that looks back holds `sliding_window` tokens, the query's own among them; both ways, half to a side."""
    both_ways = flag(config, "use_bidirectional_attention")
    if kind == "full_attention":
        return Full() if both_ways else Causal()
    window = count(config, "sliding_window")
    return Window(window // 2) if both_ways else Window(window - 1) & Causal()


def norm(config: Json) -> NormConfig:
    return NormConfig("rms", config["rms_norm_eps"], unit_offset=True)


def layer(config: Json, kind: str) -> LayerConfig:
    return LayerConfig(
        AttentionConfig(
            count(config, "num_attention_heads"),
            pattern(config, kind),
            score=ScaledDotFor(count(config, "query_pre_attn_scalar")),
            key_heads=count(config, "num_key_value_heads"),
            head_norm=norm(config),
            head_width=count(config, "head_dim"),
            bias=flag(config, "attention_bias"),
            rotary_base=rotary.base_of_kind(config, kind, KINDS),
        ),
        FeedForwardConfig(
            count(config, "intermediate_size"), activation(config, "hidden_activation"), gated=True, bias=False
        ),
        norm(config),
        sandwich=True,
    )


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    width = count(config, "hidden_size")
    return EncoderConfig(
        inputs=TokensConfig(count(config, "vocab_size"), scale=width**0.5),
        width=width,
        layers=tuple(layer(config, kind) for kind in kinds_of_layers(config)),
        max_length=count(config, "max_position_embeddings"),
        final_norm=norm(config),
        head=head,
    )


WEIGHTS: Weights = {
    **qwen.WEIGHTS,
    "layers.#.post_attention_layernorm": "blocks.#.attention_out_norm",
    "layers.#.pre_feedforward_layernorm": "blocks.#.feed_forward_norm",
    "layers.#.post_feedforward_layernorm": "blocks.#.feed_forward_out_norm",
}

GEMMA3_TEXT = Family(
    name="gemma3_text",
    prefix="model.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "Gemma3TextModel": None,
        "Gemma3ForCausalLM": None,
        "Gemma3TextForSequenceClassification": qwen.SEQUENCE,
    },
    beside=qwen.BESIDE,
)
