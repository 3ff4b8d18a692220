"""DeBERTa, versions 2 and 3 (He et al., 2021): BERT with disentangled attention."""

from dataclasses import replace

from heed.model.attention_config import AttentionConfig, AttentionVariant
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig
from heed.model.disentangled_attention import DisentangledConfig, DistancesConfig
from heed.model.families import bert
from heed.model.families.base import Family, Head, Weights, activation, count, flag
from heed.model.families.keys import Json, Keys
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    required=bert.REQUIRED,
    optional={
        "layer_norm_eps": 1e-7,
        "max_relative_positions": -1,
        "norm_rel_ebd": "none",
        "pooler_hidden_act": "gelu",
        "pos_att_type": None,
        "position_biased_input": True,
        "position_buckets": -1,
        "relative_attention": False,
        "share_att_key": False,
        "type_vocab_size": 0,
    },
    # Sizes of weights, settings of layers that are refused, and which form the head of the language model has.
    neutral=bert.NEUTRAL
    | {"attention_head_size", "conv_act", "conv_groups", "legacy", "padding_idx", "pooler_hidden_size"},
    fixed={"conv_kernel_size": (0,)},
)

TERMS = ("c2p", "p2c")


def terms(config: Json) -> set[str]:
    """
    Raises:
        ValueError: they are others than `TERMS`, or do not go together with `relative_attention`.
    """
    said = config["pos_att_type"] or []
    found = {term.strip() for term in (said.lower().split("|") if isinstance(said, str) else said)}
    if not found <= set(TERMS) or bool(found) != flag(config, "relative_attention"):
        raise ValueError(
            f"config.json: pos_att_type={said!r} beside relative_attention={config['relative_attention']!r} is not "
            f"supported, only any of {', '.join(TERMS)} with relative_attention, and none without"
        )
    return found


def distances(config: Json) -> DistancesConfig:
    """
    Raises:
        ValueError: the table is normed in a way that is not known.
    """
    kind = config["norm_rel_ebd"]
    if kind not in ["none", "layer_norm"]:
        raise ValueError(f"config.json: norm_rel_ebd={kind!r} is none of none, layer_norm")
    farthest, buckets = config["max_relative_positions"], config["position_buckets"]
    if type(farthest) is not int or farthest < 1:
        farthest = count(config, "max_position_embeddings")
    norm = bert.norm(config) if kind == "layer_norm" else None
    if type(buckets) is not int or buckets < 1:
        return DistancesConfig(farthest, norm=norm)
    return DistancesConfig(buckets, farthest, norm)


def attention(config: Json) -> AttentionVariant:
    heads, found = count(config, "num_attention_heads"), terms(config)
    if not found:
        return AttentionConfig(heads)
    return DisentangledConfig(heads, "c2p" in found, "p2c" in found, flag(config, "share_att_key"))


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    plain = bert.encoder(config, head)
    return replace(
        plain,
        layers=tuple(replace(layer, attention=attention(config)) for layer in plain.layers),
        positions=plain.positions if flag(config, "position_biased_input") else None,
        relative_bias=distances(config) if terms(config) else None,
    )


WEIGHTS: Weights = {
    **bert.WEIGHTS,
    "encoder.rel_embeddings.weight": "relative_bias.table",
    "encoder.LayerNorm": "relative_bias.norm",
    "encoder.layer.#.attention.self.query_proj": "blocks.#.attention.query",
    "encoder.layer.#.attention.self.key_proj": "blocks.#.attention.key",
    "encoder.layer.#.attention.self.value_proj": "blocks.#.attention.value",
    "encoder.layer.#.attention.self.pos_key_proj": "blocks.#.attention.position_key",
    "encoder.layer.#.attention.self.pos_query_proj": "blocks.#.attention.position_query",
}

# Of the first real token: what `transformers` has in a padded first column depends on how much padding there is.
SEQUENCE = Head(
    lambda config, names: LabelsConfig(
        names, per="sequence", pooling="first_real", hidden=activation(config, "pooler_hidden_act")
    ),
    bert.SEQUENCE.weights,
)

DEBERTA_V2 = Family(
    name="deberta-v2",
    prefix="deberta.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "DebertaV2Model": None,
        "DebertaV2ForMaskedLM": None,
        "DebertaV2ForSequenceClassification": SEQUENCE,
        "DebertaV2ForTokenClassification": bert.TOKEN,
    },
    beside=bert.BESIDE | dict.fromkeys(("lm_predictions.", "mask_predictions."), "the head of the language model"),
    spare=frozenset({"embeddings.positions.table.weight"}),
)
