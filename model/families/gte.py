"""GTE of 2024 (Zhang et al., mGTE): BERT with rotary positions and GeGLU, for rows of 8,192 tokens.

Published as `new`, with code (`auto_map`, never run); `transformers` has it as `gte`. Earlier GTE models are BERT.
"""

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig
from heed.model.embeddings import TokensConfig
from heed.model.families import bert, nomic_bert, rotary
from heed.model.families.base import Family, Weights, activation, count, split
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    required=bert.REQUIRED,
    optional={"layer_norm_eps": 1e-12, "type_vocab_size": 1, **rotary.KEYS},
    # Dropout; ways to compute and to store the same; and how short a vector may be cut, for people.
    neutral=frozenset(
        {
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "hidden_dropout_prob",
            "matryoshka_dimensions",
            "pack_qkv",
            "pad_token_id",
            "unpad_inputs",
            "use_memory_efficient_attention",
        }
    ),
    fixed={
        "layer_norm_type": ("layer_norm",),
        "logn_attention_clip1": (False,),
        "logn_attention_scale": (False,),
        "position_embedding_type": ("rope",),
    },
)


def layer(config: Json) -> LayerConfig:
    """A post-norm layer that sees all tokens."""
    positions = rotary.read_rotary(config, default_base=10_000.0 if config["model_type"] == "new" else 160_000.0)
    return LayerConfig(
        AttentionConfig(
            count(config, "num_attention_heads"), rotary_base=positions.base, rotary_factor=positions.factor
        ),
        FeedForwardConfig(
            count(config, "intermediate_size"),
            activation(config, "hidden_act"),
            gated=True,
            bias=False,
            out_bias=True,
        ),
        bert.norm(config),
    )


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    return EncoderConfig(
        inputs=TokensConfig(count(config, "vocab_size"), config["type_vocab_size"]),
        width=count(config, "hidden_size"),
        layers=(layer(config),) * count(config, "num_hidden_layers"),
        max_length=count(config, "max_position_embeddings"),
        embedding_norm=bert.norm(config),
        head=head,
    )


WEIGHTS: Weights = {
    **nomic_bert.OWN_WEIGHTS,
    # The code's names, with `pack_qkv` and without.
    "encoder.layer.#.attention.qkv_proj": split(
        "blocks.#.attention.query", "blocks.#.attention.key", "blocks.#.attention.value"
    ),
    "encoder.layer.#.attention.q_proj": "blocks.#.attention.query",
    "encoder.layer.#.attention.k_proj": "blocks.#.attention.key",
    "encoder.layer.#.attention.v_proj": "blocks.#.attention.value",
    "encoder.layer.#.attention.o_proj": "blocks.#.attention.out",
    "encoder.layer.#.attn_ln": "blocks.#.attention_norm",
    "encoder.layer.#.mlp.up_gate_proj": split("blocks.#.feed_forward.gate", "blocks.#.feed_forward.up"),
    "encoder.layer.#.mlp.down_proj": "blocks.#.feed_forward.down",
    "encoder.layer.#.mlp_ln": "blocks.#.feed_forward_norm",
}

GTE = Family(
    name="gte",
    prefix=("gte.", "new."),
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "GteModel": None,
        "GteForMaskedLM": None,
        "GteForSequenceClassification": bert.SEQUENCE,
        "GteForTokenClassification": bert.TOKEN,
        "NewModel": None,
        "NewForMaskedLM": None,
        "NewForSequenceClassification": bert.SEQUENCE,
        "NewForTokenClassification": bert.TOKEN,
    },
    beside={**bert.BESIDE, "embeddings.rotary_emb.": ""},
    other_types=("new",),
)
