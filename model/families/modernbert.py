"""ModernBERT (Warner et al., 2024): pre-norm, rotary positions, gated feed-forward, windows in most layers."""

from dataclasses import replace

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig
from heed.model.embeddings import TokensConfig
from heed.model.families import rotary
from heed.model.families.base import Family, Head, Weights, activation, count, flag, split
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.norms import NormConfig
from heed.model.patterns import Full, Window
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    required=frozenset(
        {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"},
    ),
    optional={
        "attention_bias": False,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_pooling": "cls",
        "global_attn_every_n_layers": 3,  # of earlier folders, which have no layer_types
        "global_rope_theta": 160_000.0,  # of earlier folders, which have no rope_parameters
        "hidden_activation": "gelu",
        "layer_types": None,
        "local_attention": 128,
        "local_rope_theta": 10_000.0,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "norm_bias": False,
        "norm_eps": 1e-5,
        "rope_parameters": None,
    },
    # Dropout, initial values, the language-model head, ways to compute the same; settings that no code ever read.
    neutral=frozenset(
        {
            "attention_dropout",
            "classifier_dropout",
            "decoder_bias",
            "deterministic_flash_attn",
            "embedding_dropout",
            "initializer_cutoff_factor",
            "layer_norm_eps",
            "mlp_dropout",
            "pad_token_id",
            "position_embedding_type",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_pred_ignore_index",
            "sparse_prediction",
        }
    ),
    fixed={"rope_scaling": (None,)},
)

# Each kind of layer, and the setting that held its rotary base before there were rope_parameters.
KINDS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def kinds_of_layers(config: Json) -> list[str]:
    """Which layers see all, and which see a window: in `KINDS`.

    Raises:
        ValueError: layer_types does not name a kind that is known here for each layer.
    """
    layers, kinds = count(config, "num_hidden_layers"), config["layer_types"]
    if kinds is None:
        every = count(config, "global_attn_every_n_layers")
        return ["sliding_attention" if number % every else "full_attention" for number in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in list(KINDS) for kind in kinds):
        raise ValueError(f"config.json: layer_types={kinds!r} is not {layers} times one of {', '.join(KINDS)}")
    return kinds


def norm(config: Json) -> NormConfig:
    return NormConfig(epsilon=config["norm_eps"], bias=flag(config, "norm_bias"))


def layer(config: Json, number: int, kind: str) -> LayerConfig:
    window = kind == "sliding_attention"
    return LayerConfig(
        AttentionConfig(
            count(config, "num_attention_heads"),
            Window(count(config, "local_attention") // 2) if window else Full(),
            bias=flag(config, "attention_bias"),
            rotary_base=rotary.base_of_kind(config, kind, KINDS),
        ),
        FeedForwardConfig(
            count(config, "intermediate_size"),
            activation(config, "hidden_activation"),
            gated=True,
            bias=flag(config, "mlp_bias"),
        ),
        norm(config),
        norm_first=True,
        attention_norm=number > 0,  # the first layer reads what the embeddings have normed
    )


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    return EncoderConfig(
        inputs=TokensConfig(count(config, "vocab_size")),
        width=count(config, "hidden_size"),
        layers=tuple(layer(config, number, kind) for number, kind in enumerate(kinds_of_layers(config))),
        max_length=count(config, "max_position_embeddings"),
        embedding_norm=norm(config),
        final_norm=norm(config),
        head=head,
    )


WEIGHTS: Weights = {
    "embeddings.tok_embeddings": "embeddings.inputs.tokens",
    "embeddings.norm": "embeddings.norm",
    "layers.#.attn_norm": "blocks.#.attention_norm",
    "layers.#.attn.Wqkv": split("blocks.#.attention.query", "blocks.#.attention.key", "blocks.#.attention.value"),
    "layers.#.attn.Wo": "blocks.#.attention.out",
    "layers.#.mlp_norm": "blocks.#.feed_forward_norm",
    "layers.#.mlp.Wi": split("blocks.#.feed_forward.up", "blocks.#.feed_forward.gate"),
    "layers.#.mlp.Wo": "blocks.#.feed_forward.down",
    "final_norm": "norm",
}


def labels(config: Json, names: tuple[str, ...]) -> LabelsConfig:
    """A dense layer, its activation and a norm before the scores; per token."""
    return LabelsConfig(
        names,
        per="token",
        hidden=activation(config, "classifier_activation"),
        hidden_bias=flag(config, "classifier_bias"),
        hidden_norm=norm(config),
    )


def sequence_labels(config: Json, names: tuple[str, ...]) -> LabelsConfig:
    """The same of the first token, or of the mean over tokens.

    Raises:
        ValueError: the pooling is neither.
    """
    pooling = config["classifier_pooling"]
    if pooling not in ["cls", "mean"]:
        raise ValueError(f"config.json: classifier_pooling={pooling!r} is none of cls, mean")
    return replace(labels(config, names), per="sequence", pooling=pooling)


HEAD: Weights = {"head.dense": "head.hidden", "head.norm": "head.norm", "classifier": "head.out"}

MODERNBERT = Family(
    name="modernbert",
    prefix="model.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "ModernBertModel": None,
        "ModernBertForMaskedLM": None,
        "ModernBertForSequenceClassification": Head(sequence_labels, HEAD),
        "ModernBertForTokenClassification": Head(labels, HEAD),
    },
    beside=dict.fromkeys(("head.", "decoder."), "the head of the language model"),
)
