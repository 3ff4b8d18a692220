"""BERT (Devlin et al., 2019), and what RoBERTa, ELECTRA, Longformer and Big Bird have in common with it.

MiniLM, E5, BGE and GTE are BERT.
"""

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig, LearnedConfig
from heed.model.embeddings import TokensConfig
from heed.model.families.base import Family, Head, Weights, activation, count
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.norms import NormConfig
from heed.model.pooling import PoolingConfig

REQUIRED = frozenset(
    {
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    }
)

# Dropout; settings that no code for PyTorch ever read; and the padding id: positions are columns.
NEUTRAL = frozenset(
    {
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "directionality",
        "hidden_dropout_prob",
        "pad_token_id",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    }
)

FIXED = {"position_embedding_type": ("absolute",)}

KEYS = Keys(REQUIRED, {"layer_norm_eps": 1e-12, "type_vocab_size": 2}, NEUTRAL, FIXED)


def norm(config: Json) -> NormConfig:
    return NormConfig(epsilon=config["layer_norm_eps"])


def layer(config: Json) -> LayerConfig:
    """A post-norm layer that sees all tokens."""
    return LayerConfig(
        AttentionConfig(count(config, "num_attention_heads")),
        FeedForwardConfig(count(config, "intermediate_size"), activation(config, "hidden_act")),
        norm(config),
    )


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    rows = count(config, "max_position_embeddings")
    return EncoderConfig(
        inputs=TokensConfig(count(config, "vocab_size"), config["type_vocab_size"]),
        width=count(config, "hidden_size"),
        layers=(layer(config),) * count(config, "num_hidden_layers"),
        max_length=rows,
        positions=LearnedConfig(rows),
        embedding_norm=norm(config),
        head=head,
    )


WEIGHTS: Weights = {
    "embeddings.word_embeddings": "embeddings.inputs.tokens",
    "embeddings.position_embeddings": "embeddings.positions.table",
    "embeddings.token_type_embeddings": "embeddings.inputs.types",
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer.#.attention.self.query": "blocks.#.attention.query",
    "encoder.layer.#.attention.self.key": "blocks.#.attention.key",
    "encoder.layer.#.attention.self.value": "blocks.#.attention.value",
    "encoder.layer.#.attention.output.dense": "blocks.#.attention.out",
    "encoder.layer.#.attention.output.LayerNorm": "blocks.#.attention_norm",
    "encoder.layer.#.intermediate.dense": "blocks.#.feed_forward.up",
    "encoder.layer.#.output.dense": "blocks.#.feed_forward.down",
    "encoder.layer.#.output.LayerNorm": "blocks.#.feed_forward_norm",
}

# The pooler's tanh vector feeds only heads; the buffer is of old checkpoints.
BESIDE = {
    "cls.": "the head of the language model",
    "lm_head.": "the head of the language model",
    "pooler.": "the pooler",
    "embeddings.position_ids": "",
}

# The pooler, dense and tanh, is what the classifier reads.
SEQUENCE = Head(
    lambda config, names: LabelsConfig(names, per="sequence", hidden="tanh"),
    {"pooler.dense": "head.hidden", "classifier": "head.out"},
)
TOKEN = Head(lambda config, names: LabelsConfig(names, per="token"), {"classifier": "head.out"})

BERT = Family(
    name="bert",
    prefix="bert.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "BertModel": None,
        "BertForMaskedLM": None,
        "BertForPreTraining": None,
        "BertForSequenceClassification": SEQUENCE,
        "BertForTokenClassification": TOKEN,
    },
    beside=BESIDE,
)
