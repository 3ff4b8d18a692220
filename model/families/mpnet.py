"""MPNet (Song et al., 2020): positions that are counted from the ids, and a bias by distance that all layers share."""

from dataclasses import replace

from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LogBuckets
from heed.model.families import bert
from heed.model.families.base import Family, Weights
from heed.model.families.keys import Json, Keys
from heed.model.families.roberta import SEQUENCE, counted
from heed.model.pooling import PoolingConfig

# The published code counts from this id, whatever the config says.
PADDING_ID = 1

# As many as the published code sorts distances into, whatever the config says.
BUCKETS = 32

KEYS = Keys(
    required=bert.REQUIRED,
    optional={"layer_norm_eps": 1e-12},
    neutral=bert.NEUTRAL,
    fixed=bert.FIXED | {"relative_attention_num_buckets": (BUCKETS,)},
)


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    without_types = bert.encoder(config | {"type_vocab_size": 0}, head)
    return replace(counted(without_types, PADDING_ID), relative_bias=LogBuckets(BUCKETS, farthest=128))


WEIGHTS: Weights = {
    "embeddings.word_embeddings": "embeddings.inputs.tokens",
    "embeddings.position_embeddings": "embeddings.positions.table",
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.relative_attention_bias": "relative_bias.table",
    "encoder.layer.#.attention.attn.q": "blocks.#.attention.query",
    "encoder.layer.#.attention.attn.k": "blocks.#.attention.key",
    "encoder.layer.#.attention.attn.v": "blocks.#.attention.value",
    "encoder.layer.#.attention.attn.o": "blocks.#.attention.out",
    "encoder.layer.#.attention.LayerNorm": "blocks.#.attention_norm",
    "encoder.layer.#.intermediate.dense": "blocks.#.feed_forward.up",
    "encoder.layer.#.output.dense": "blocks.#.feed_forward.down",
    "encoder.layer.#.output.LayerNorm": "blocks.#.feed_forward_norm",
}

MPNET = Family(
    name="mpnet",
    prefix="mpnet.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "MPNetModel": None,
        "MPNetForMaskedLM": None,
        "MPNetForSequenceClassification": SEQUENCE,
        "MPNetForTokenClassification": bert.TOKEN,
    },
    beside=bert.BESIDE,
)
