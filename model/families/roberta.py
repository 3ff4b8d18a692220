"""RoBERTa (Liu et al., 2019), XLM-RoBERTa and CamemBERT: BERT with positions that are counted from the ids."""

from dataclasses import replace

from heed.model.classification_head import LabelsConfig
from heed.model.config import EncoderConfig
from heed.model.embeddings import TokensConfig
from heed.model.families import bert
from heed.model.families.base import Family, Head
from heed.model.families.keys import Json, Keys
from heed.model.pooling import PoolingConfig
from heed.model.positions import PositionRule

KEYS = Keys(
    bert.REQUIRED,
    {"layer_norm_eps": 1e-12, "pad_token_id": 1, "type_vocab_size": 2},
    bert.NEUTRAL - {"pad_token_id"},
    bert.FIXED,
)


def counted(config: EncoderConfig, padding_id: object) -> EncoderConfig:
    """The same encoder with positions that are counted from the ids, and so fewer columns than positions.

    Raises:
        ValueError: the padding id is no id of the vocabulary.
    """
    assert isinstance(config.inputs, TokensConfig)
    if type(padding_id) is not int or not 0 <= padding_id < config.inputs.vocabulary:
        raise ValueError(
            f"config.json: pad_token_id={padding_id!r} is not in the vocabulary of {config.inputs.vocabulary}"
        )
    rule = PositionRule("counted", padding_id)
    return replace(config, position_rule=rule, max_length=config.max_length - padding_id - 1)


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    return counted(bert.encoder(config, head), config["pad_token_id"])


SEQUENCE = Head(
    lambda config, names: LabelsConfig(names, per="sequence", hidden="tanh"),
    {"classifier.dense": "head.hidden", "classifier.out_proj": "head.out"},
)


def _roberta(name: str, class_prefix: str) -> Family:
    return Family(
        name=name,
        prefix="roberta.",
        keys=KEYS,
        encoder=encoder,
        weights=bert.WEIGHTS,
        heads={
            f"{class_prefix}Model": None,
            f"{class_prefix}ForMaskedLM": None,
            f"{class_prefix}ForSequenceClassification": SEQUENCE,
            f"{class_prefix}ForTokenClassification": bert.TOKEN,
        },
        beside=bert.BESIDE,
    )


ROBERTA = _roberta("roberta", "Roberta")
XLM_ROBERTA = _roberta("xlm-roberta", "XLMRoberta")
CAMEMBERT = _roberta("camembert", "Camembert")
