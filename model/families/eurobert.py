"""EuroBERT (Boizard et al., 2025): the layers of a decoder, whose tokens see both ways."""

from dataclasses import replace

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig
from heed.model.families import bert, qwen, rotary
from heed.model.families.base import Family, Head, activation, count, flag
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    qwen.REQUIRED,
    optional={
        **qwen.OPTIONAL,
        "attention_bias": False,
        "classifier_pooling": "late",
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
    },
    neutral=qwen.NEUTRAL | {"bos_token", "eos_token", "mask_token", "pad_token"},  # for tokenizers
    fixed={"pretraining_tp": (1,)},
)


def layer(config: Json) -> LayerConfig:
    positions = rotary.read_rotary(config, default_base=250_000.0)
    return LayerConfig(
        AttentionConfig(
            count(config, "num_attention_heads"),
            key_heads=qwen.optional_count(config, "num_key_value_heads"),
            head_width=qwen.optional_count(config, "head_dim"),
            bias=flag(config, "attention_bias"),
            rotary_base=positions.base,
            rotary_factor=positions.factor,
        ),
        FeedForwardConfig(
            count(config, "intermediate_size"),
            activation(config, "hidden_act"),
            gated=True,
            bias=flag(config, "mlp_bias"),
        ),
        qwen.norm(config),
        norm_first=True,
    )


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    return qwen.decoder(config, (layer(config),) * count(config, "num_hidden_layers"), head)


def labels(config: Json, names: tuple[str, ...]) -> LabelsConfig:
    """Of the first token, or of the mean over tokens: before the dense layer and its GELU, or after them ("late").

    Raises:
        ValueError: the pooling is another one.
    """
    pooling = config["classifier_pooling"]
    if pooling not in ["bos", "mean", "late"]:
        raise ValueError(f"config.json: classifier_pooling={pooling!r} is none of bos, mean, late")
    plain = LabelsConfig(names, per="sequence", hidden="gelu")
    return plain if pooling == "bos" else replace(plain, pooling="mean", pools_hidden=pooling == "late")


EUROBERT = Family(
    name="eurobert",
    prefix="model.",
    keys=KEYS,
    encoder=encoder,
    weights=qwen.WEIGHTS,
    heads={
        "EuroBertModel": None,
        "EuroBertForMaskedLM": None,
        "EuroBertForSequenceClassification": Head(labels, {"dense": "head.hidden", "classifier": "head.out"}),
        "EuroBertForTokenClassification": bert.TOKEN,
    },
    beside=qwen.BESIDE,
)
