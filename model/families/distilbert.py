"""DistilBERT (Sanh et al., 2019): BERT without token types and without a pooler, under other names."""

from heed.model.attention_config import AttentionConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig, LayerConfig, LearnedConfig
from heed.model.embeddings import TokensConfig
from heed.model.families.base import Family, Head, Weights, activation, count
from heed.model.families.bert import TOKEN
from heed.model.families.keys import Json, Keys
from heed.model.feed_forward import FeedForwardConfig
from heed.model.norms import NormConfig
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    required=frozenset(
        {"activation", "dim", "hidden_dim", "max_position_embeddings", "n_heads", "n_layers", "vocab_size"}
    ),
    neutral=frozenset(
        {
            "attention_dropout",
            "dropout",
            "pad_token_id",
            "qa_dropout",
            "seq_classif_dropout",
            "sinusoidal_pos_embds",  # how the table was made; it is among the weights
            "tie_weights_",
        }
    ),
    synonyms={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
)


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    norm = NormConfig(epsilon=1e-12)
    rows = count(config, "max_position_embeddings")
    layer = LayerConfig(
        AttentionConfig(count(config, "n_heads")),
        FeedForwardConfig(count(config, "hidden_dim"), activation(config, "activation")),
        norm,
    )
    return EncoderConfig(
        inputs=TokensConfig(count(config, "vocab_size")),
        width=count(config, "dim"),
        layers=(layer,) * count(config, "n_layers"),
        max_length=rows,
        positions=LearnedConfig(rows),
        embedding_norm=norm,
        head=head,
    )


WEIGHTS: Weights = {
    "embeddings.word_embeddings": "embeddings.inputs.tokens",
    "embeddings.position_embeddings": "embeddings.positions.table",
    "embeddings.LayerNorm": "embeddings.norm",
    "transformer.layer.#.attention.q_lin": "blocks.#.attention.query",
    "transformer.layer.#.attention.k_lin": "blocks.#.attention.key",
    "transformer.layer.#.attention.v_lin": "blocks.#.attention.value",
    "transformer.layer.#.attention.out_lin": "blocks.#.attention.out",
    "transformer.layer.#.sa_layer_norm": "blocks.#.attention_norm",
    "transformer.layer.#.ffn.lin1": "blocks.#.feed_forward.up",
    "transformer.layer.#.ffn.lin2": "blocks.#.feed_forward.down",
    "transformer.layer.#.output_layer_norm": "blocks.#.feed_forward_norm",
}

SEQUENCE = Head(
    lambda config, names: LabelsConfig(names, per="sequence", hidden="relu"),
    {"pre_classifier": "head.hidden", "classifier": "head.out"},
)

DISTILBERT = Family(
    name="distilbert",
    prefix="distilbert.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "DistilBertModel": None,
        "DistilBertForMaskedLM": None,
        "DistilBertForSequenceClassification": SEQUENCE,
        "DistilBertForTokenClassification": TOKEN,
    },
    beside={"vocab_": "the head of the language model", "embeddings.position_ids": ""},
)
