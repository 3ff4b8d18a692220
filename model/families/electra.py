"""ELECTRA (Clark et al., 2020): BERT whose tables may be narrower than the encoder."""

from dataclasses import replace

from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig
from heed.model.embeddings import TokensConfig
from heed.model.families import bert
from heed.model.families.base import Family, Head, Weights, count
from heed.model.families.keys import Json, Keys
from heed.model.pooling import PoolingConfig

KEYS = Keys(
    required=bert.REQUIRED | {"embedding_size"},
    optional=bert.KEYS.optional,
    # The summary is for multiple choice, which is not read here.
    neutral=bert.NEUTRAL | {"summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"},
    fixed=bert.FIXED,
)


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    inputs = TokensConfig(count(config, "vocab_size"), config["type_vocab_size"], count(config, "embedding_size"))
    return replace(bert.encoder(config, head), inputs=inputs)


WEIGHTS: Weights = {**bert.WEIGHTS, "embeddings_project": "embeddings.project"}

SEQUENCE = Head(
    lambda config, names: LabelsConfig(names, per="sequence", hidden="gelu"),
    {"classifier.dense": "head.hidden", "classifier.out_proj": "head.out"},
)

ELECTRA = Family(
    name="electra",
    prefix="electra.",
    keys=KEYS,
    encoder=encoder,
    weights=WEIGHTS,
    heads={
        "ElectraModel": None,
        "ElectraForMaskedLM": None,
        "ElectraForPreTraining": None,
        "ElectraForSequenceClassification": SEQUENCE,
        "ElectraForTokenClassification": bert.TOKEN,
    },
    beside={
        "discriminator_predictions.": "the discriminator's head",
        "generator_predictions.": "the generator's head",
        "generator_lm_head.": "the generator's head",
        "embeddings.position_ids": "",
    },
)
