"""Big Bird (Zaheer et al., 2020): BERT with attention in blocks, as its checkpoints compute it at inference."""

from dataclasses import replace

from heed.model.big_bird_attention import BigBirdConfig
from heed.model.classification_head import LabelsConfig
from heed.model.config import AttentionConfig, EncoderConfig
from heed.model.families import bert
from heed.model.families.base import Family, Head, activation, count, flag
from heed.model.families.keys import Json, Keys
from heed.model.pooling import PoolingConfig
from heed.model.positions import PositionRule

KEYS = Keys(
    bert.KEYS.required,
    {
        **bert.KEYS.optional,
        "attention_type": "block_sparse",
        "block_size": 64,
        "num_random_blocks": 3,
        "use_bias": True,  # in the projections to queries, keys and values
    },
    bert.KEYS.neutral,
    {**bert.KEYS.fixed, "rescale_embeddings": (False,)},
)


def encoder(config: Json, head: PoolingConfig | LabelsConfig | None) -> EncoderConfig:
    """
    Raises:
        ValueError: attention_type is neither of the two.
    """
    plain = bert.encoder(config, head)
    if config["attention_type"] == "original_full":
        full = AttentionConfig(count(config, "num_attention_heads"), bias=flag(config, "use_bias"), out_bias=True)
        return replace(plain, layers=tuple(replace(layer, attention=full) for layer in plain.layers))
    if config["attention_type"] != "block_sparse":
        raise ValueError(
            f"config.json: attention_type={config['attention_type']!r} is none of block_sparse, original_full"
        )
    sparse = BigBirdConfig(
        count(config, "num_attention_heads"),
        count(config, "block_size"),
        count(config, "num_random_blocks"),
        bias=flag(config, "use_bias"),
    )
    return replace(
        plain,
        layers=tuple(replace(layer, attention=sparse) for layer in plain.layers),
        max_length=longest(plain.max_length, sparse),
        # Where the blocks of a row begin does not depend on the padding around it, so neither may its positions.
        position_rule=PositionRule("stripped"),
    )


def longest(positions: int, attention: BigBirdConfig) -> int:
    """The columns of the longest row: long rows are filled up to whole blocks, which need positions, too."""
    if positions <= attention.dense_up_to:
        return positions
    return positions // attention.block * attention.block


SEQUENCE = Head(
    lambda config, names: LabelsConfig(names, per="sequence", hidden=activation(config, "hidden_act")),
    {"classifier.dense": "head.hidden", "classifier.out_proj": "head.out"},
)

BIG_BIRD = Family(
    name="big_bird",
    prefix="bert.",
    keys=KEYS,
    encoder=encoder,
    weights=bert.WEIGHTS,
    heads={
        "BigBirdModel": None,
        "BigBirdForMaskedLM": None,
        "BigBirdForPreTraining": None,
        "BigBirdForSequenceClassification": SEQUENCE,
        "BigBirdForTokenClassification": bert.TOKEN,
    },
    beside=bert.BESIDE,
)
