"""ViT (Dosovitskiy et al., 2021): images as patches, behind a class token.

How pixels are scaled and normed (`preprocessor_config.json`) is the caller's business.
"""

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig, LearnedConfig
from heed.model.embeddings import ImagesConfig
from heed.model.families.base import Family, Head, Weights, activation, changed, count, flag
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.norms import NormConfig
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    required=frozenset(
        {
            "hidden_act",
            "hidden_size",
            "image_size",
            "intermediate_size",
            "num_attention_heads",
            "num_channels",
            "num_hidden_layers",
            "patch_size",
        }
    ),
    optional={"layer_norm_eps": 1e-12, "qkv_bias": True},
    # Dropout, the decoder of masked images, and the pooler, which no head reads.
    neutral=frozenset(
        {"attention_probs_dropout_prob", "encoder_stride", "hidden_dropout_prob", "pooler_act", "pooler_output_size"}
    ),
)


def sides(config: Json, key: str) -> tuple[int, int]:
    """Height and width, from one number for both or from two.

    Raises:
        ValueError: it is neither.
    """
    value = config[key]
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
        raise ValueError(f"config.json: {key}={value!r} is not a positive integer, or two of them")
    return pair[0], pair[1]


def images(config: Json) -> ImagesConfig:
    """
    Raises:
        ValueError: patches are not square, or do not fill the image.
    """
    height, width = sides(config, "image_size")
    patch, patch_width = sides(config, "patch_size")
    if patch != patch_width:
        raise ValueError(f"config.json: patch_size={config['patch_size']!r} is not supported, only square patches")
    return ImagesConfig(count(config, "num_channels"), height, width, patch)


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    norm = NormConfig(epsilon=config["layer_norm_eps"])
    layer = LayerConfig(
        AttentionConfig(count(config, "num_attention_heads"), bias=flag(config, "qkv_bias"), out_bias=True),
        FeedForwardConfig(count(config, "intermediate_size"), activation(config, "hidden_act")),
        norm,
        norm_first=True,
    )
    inputs = images(config)
    return EncoderConfig(
        inputs=inputs,
        width=count(config, "hidden_size"),
        layers=(layer,) * count(config, "num_hidden_layers"),
        max_length=inputs.patches + 1,
        positions=LearnedConfig(inputs.patches + 1),
        final_norm=norm,
        head=head,
    )


WEIGHTS: Weights = {
    "embeddings.cls_token": changed("embeddings.inputs.class_token", lambda tensor: tensor.flatten()),
    "embeddings.position_embeddings": changed("embeddings.positions.table.weight", lambda tensor: tensor.flatten(0, 1)),
    "embeddings.patch_embeddings.projection.weight": changed(
        "embeddings.inputs.project.weight",
        lambda tensor: tensor.flatten(1),  # a convolution whose kernels do not overlap
    ),
    "embeddings.patch_embeddings.projection.bias": "embeddings.inputs.project.bias",
    "encoder.layer.#.layernorm_before": "blocks.#.attention_norm",
    "encoder.layer.#.attention.attention.query": "blocks.#.attention.query",
    "encoder.layer.#.attention.attention.key": "blocks.#.attention.key",
    "encoder.layer.#.attention.attention.value": "blocks.#.attention.value",
    "encoder.layer.#.attention.output.dense": "blocks.#.attention.out",
    "encoder.layer.#.layernorm_after": "blocks.#.feed_forward_norm",
    "encoder.layer.#.intermediate.dense": "blocks.#.feed_forward.up",
    "encoder.layer.#.output.dense": "blocks.#.feed_forward.down",
    # What transformers 5 calls the same in memory, and in folders if told to.
    "layers.#.layernorm_before": "blocks.#.attention_norm",
    "layers.#.attention.q_proj": "blocks.#.attention.query",
    "layers.#.attention.k_proj": "blocks.#.attention.key",
    "layers.#.attention.v_proj": "blocks.#.attention.value",
    "layers.#.attention.o_proj": "blocks.#.attention.out",
    "layers.#.layernorm_after": "blocks.#.feed_forward_norm",
    "layers.#.mlp.fc1": "blocks.#.feed_forward.up",
    "layers.#.mlp.fc2": "blocks.#.feed_forward.down",
    "layernorm": "norm",
}

VIT = Family(
    name="vit",
    prefix="vit.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "ViTModel": None,
        "ViTForMaskedImageModeling": None,
        "ViTForImageClassification": Head(
            lambda config, names: LabelsConfig(names, per="sequence"), {"classifier": "head.out"}
        ),
    },
    beside={"pooler.": "the pooler", "decoder.": "the decoder of masked images", "embeddings.mask_token": ""},
)
