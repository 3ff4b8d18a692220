"""Nomic BERT (Nussbaum et al., 2024): BERT with rotary positions and SwiGLU.

Folders of `transformers`' own and those that came with code (`auto_map`, never run) name everything differently.
"""

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig
from heed.model.embeddings import TokensConfig
from heed.model.families import bert, rotary
from heed.model.families.base import Family, Weights, activation, count, flag, split
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.pooling import PoolingConfig

# What the code that came with folders calls an activation together with its gate.
GATED = {"swiglu": "silu", "geglu": "gelu"}

KEYS = Keys(
    required=bert.REQUIRED,
    optional={
        "head_dim": None,
        "layer_norm_eps": 1e-12,
        "max_trained_positions": None,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "pad_vocab_size_multiple": 1,
        "qkv_proj_bias": False,
        "rotary_scaling_factor": None,
        "type_vocab_size": 2,
        **rotary.KEYS,
    },
    # Dropout; ways to compute the same; settings of GPT-2, whose config the code began with.
    neutral=frozenset(
        {
            "add_pooling_layer",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "dense_seq_output",
            "fused_bias_fc",
            "fused_dropout_add_ln",
            "hidden_dropout_prob",
            "pad_token_id",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "use_flash_attn",
            "use_xentropy",
        }
    ),
    fixed={
        "causal": (False,),
        "num_experts": (0,),
        "parallel_block": (False,),
        "parallel_block_tied_norm": (False,),
        "prenorm": (False,),
        "rotary_emb_fraction": (1.0,),
        "rotary_emb_interleaved": (False,),
        "rotary_emb_scale_base": (None,),
        "rotary_head_dim": (False,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
        "use_rms_norm": (False,),
    },
    synonyms={
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
        "rotary_emb_base": "rope_theta",
    },
)


def max_length(config: Json) -> int:
    """The longest row: with dynamic scaling (`rotary_scaling_factor`), the longest that it leaves as it is."""
    longest = count(config, "max_position_embeddings")
    if config["rotary_scaling_factor"] is None or config["max_trained_positions"] is None:
        return longest
    return min(longest, count(config, "max_trained_positions"))


def layer(config: Json) -> LayerConfig:
    """A post-norm layer that sees all tokens."""
    positions = rotary.read_rotary(config, default_base=1000.0)
    act = GATED.get(config["hidden_act"], config["hidden_act"])
    return LayerConfig(
        AttentionConfig(
            count(config, "num_attention_heads"),
            head_width=None if config["head_dim"] is None else count(config, "head_dim"),
            bias=flag(config, "qkv_proj_bias"),
            rotary_base=positions.base,
            rotary_factor=positions.factor,
        ),
        FeedForwardConfig(
            count(config, "intermediate_size"),
            activation({"hidden_act": act}, "hidden_act"),
            gated=True,
            bias=flag(config, "mlp_fc1_bias"),
            out_bias=flag(config, "mlp_fc2_bias"),
        ),
        bert.norm(config),
    )


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    multiple = count(config, "pad_vocab_size_multiple")
    vocabulary = -(-count(config, "vocab_size") // multiple) * multiple
    return EncoderConfig(
        inputs=TokensConfig(vocabulary, config["type_vocab_size"]),
        width=count(config, "hidden_size"),
        layers=(layer(config),) * count(config, "num_hidden_layers"),
        max_length=max_length(config),
        embedding_norm=bert.norm(config),
        head=head,
    )


# What `transformers` calls them in memory. It saves them under the names of the code that came first.
OWN_WEIGHTS: Weights = {
    "embeddings.word_embeddings": "embeddings.inputs.tokens",
    "embeddings.token_type_embeddings": "embeddings.inputs.types",
    "embeddings.LayerNorm": "embeddings.norm",
    "layers.#.self_attn.q_proj": "blocks.#.attention.query",
    "layers.#.self_attn.k_proj": "blocks.#.attention.key",
    "layers.#.self_attn.v_proj": "blocks.#.attention.value",
    "layers.#.self_attn.o_proj": "blocks.#.attention.out",
    "layers.#.post_attention_layernorm": "blocks.#.attention_norm",
    "layers.#.mlp.gate_proj": "blocks.#.feed_forward.up",
    "layers.#.mlp.up_proj": "blocks.#.feed_forward.gate",
    "layers.#.mlp.down_proj": "blocks.#.feed_forward.down",
    "layers.#.post_mlp_layernorm": "blocks.#.feed_forward_norm",
}
WEIGHTS: Weights = {
    **OWN_WEIGHTS,
    "emb_ln": "embeddings.norm",
    "encoder.layers.#.attn.Wqkv": split(
        "blocks.#.attention.query", "blocks.#.attention.key", "blocks.#.attention.value"
    ),
    "encoder.layers.#.attn.out_proj": "blocks.#.attention.out",
    "encoder.layers.#.norm1": "blocks.#.attention_norm",
    "encoder.layers.#.mlp.fc12": "blocks.#.feed_forward.up",
    "encoder.layers.#.mlp.fc11": "blocks.#.feed_forward.gate",
    "encoder.layers.#.mlp.fc2": "blocks.#.feed_forward.down",
    "encoder.layers.#.norm2": "blocks.#.feed_forward_norm",
}

NOMIC_BERT = Family(
    name="nomic_bert",
    prefix=("nomic_bert.", "bert."),
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "NomicBertModel": None,
        "NomicBertForMaskedLM": None,
        "NomicBertForPreTraining": None,
        "NomicBertForSequenceClassification": bert.SEQUENCE,
        "NomicBertForTokenClassification": bert.TOKEN,
    },
    beside=bert.BESIDE,
)
