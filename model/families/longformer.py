"""Longformer (Beltagy et al., 2020): RoBERTa with windows, and global tokens with projections of their own."""

from dataclasses import replace

from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig
from heed.model.families import bert, roberta
from heed.model.families.base import Family, Weights, count
from heed.model.families.keys import Json, Keys
from heed.model.longformer_attention import LongformerConfig
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    roberta.KEYS.required,
    {**roberta.KEYS.optional, "attention_window": 512},
    roberta.KEYS.neutral | {"onnx_export"},
    {**roberta.KEYS.fixed, "attention_mode": ("longformer",), "ignore_attention_mask": (False,)},
)


def radii(config: Json) -> list[int]:
    """How far each layer sees to either side: half of its window.

    Raises:
        ValueError: attention_window is neither an even number nor one for each layer.
    """
    layers, windows = count(config, "num_hidden_layers"), config["attention_window"]
    each = windows if isinstance(windows, list) else [windows] * layers
    if len(each) != layers or any(type(window) is not int or window < 2 or window % 2 for window in each):
        raise ValueError(f"config.json: attention_window={windows!r} is not an even number, or {layers} of them")
    return [window // 2 for window in each]


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    plain = roberta.encoder(config, head)
    heads = count(config, "num_attention_heads")
    layers = [
        replace(layer, attention=LongformerConfig(heads, radius))
        for layer, radius in zip(plain.layers, radii(config), strict=True)
    ]
    # Where a request names no global tokens, the classifier of sequences takes [CLS], the others none.
    of_sequences = isinstance(head, LabelsConfig) and head.per == "sequence"
    return replace(plain, layers=tuple(layers), first_tokens_global=int(of_sequences))


WEIGHTS: Weights = {
    **bert.WEIGHTS,
    "encoder.layer.#.attention.self.query_global": "blocks.#.attention.query_global",
    "encoder.layer.#.attention.self.key_global": "blocks.#.attention.key_global",
    "encoder.layer.#.attention.self.value_global": "blocks.#.attention.value_global",
}

LONGFORMER = Family(
    name="longformer",
    prefix="longformer.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "LongformerModel": None,
        "LongformerForMaskedLM": None,
        "LongformerForSequenceClassification": roberta.SEQUENCE,
        "LongformerForTokenClassification": bert.TOKEN,
    },
    beside=bert.BESIDE,
)
