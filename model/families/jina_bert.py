"""JinaBERT v2 (Günther et al., 2023): BERT with ALiBi in place of positions, and GeGLU.

Published as `bert`, with code (`auto_map`, never run); the architectures tell it from BERT.
"""

from dataclasses import replace

from heed.model.classification_head import LabelsConfig
from heed.model.config import Alibi, EncoderConfig
from heed.model.families import bert
from heed.model.families.base import Family, Weights, activation, split
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import Activation, FeedForwardConfig
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    bert.REQUIRED,
    {**bert.KEYS.optional, "feed_forward_type": "original"},
    # How its own methods pool, and cut texts.
    bert.NEUTRAL | {"attn_implementation", "emb_pooler", "model_max_length"},
    {"position_embedding_type": ("alibi",)},
)

GATED: dict[str, Activation] = {"geglu": "gelu", "reglu": "relu"}


def feed_forward(config: Json, width: int) -> FeedForwardConfig:
    """
    Raises:
        ValueError: it is of no kind that is known here.
    """
    kind = config["feed_forward_type"]
    if kind == "original":
        return FeedForwardConfig(width, activation(config, "hidden_act"))
    if kind not in list(GATED):
        raise ValueError(f"config.json: feed_forward_type={kind!r} is none of original, {', '.join(GATED)}")
    return FeedForwardConfig(width, GATED[kind], gated=True, bias=False, out_bias=True)


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    plain = bert.encoder(config, head)
    layers = tuple(
        replace(layer, feed_forward=feed_forward(config, layer.feed_forward.width)) for layer in plain.layers
    )
    return replace(plain, layers=layers, positions=None, relative_bias=Alibi())


WEIGHTS: Weights = {
    **bert.WEIGHTS,
    "encoder.layer.#.mlp.gated_layers": split("blocks.#.feed_forward.up", "blocks.#.feed_forward.gate"),
    "encoder.layer.#.mlp.wo": "blocks.#.feed_forward.down",
    "encoder.layer.#.mlp.layernorm": "blocks.#.feed_forward_norm",
}

JINA_BERT = Family(
    name="jina_bert",
    prefix="bert.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "JinaBertModel": None,
        "JinaBertForMaskedLM": None,
        "JinaBertForSequenceClassification": bert.SEQUENCE,
        "JinaBertForTokenClassification": bert.TOKEN,
    },
    beside=bert.BESIDE,
    other_types=("bert",),
)
