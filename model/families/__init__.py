"""Published model families: how their configs and weight names read in the words of this package.

Reading order: `base.py` (what a family is), `bert.py` (one of them), then any other.
"""

from model.families.base import Family, Head
from model.families.bert import BERT
from model.families.big_bird import BIG_BIRD
from model.families.distilbert import DISTILBERT
from model.families.electra import ELECTRA
from model.families.longformer import LONGFORMER
from model.families.modernbert import MODERNBERT
from model.families.mpnet import MPNET
from model.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from model.families.vit import VIT

__all__ = ["FAMILIES", "Family", "Head"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        BERT,
        ROBERTA,
        XLM_ROBERTA,
        CAMEMBERT,
        DISTILBERT,
        ELECTRA,
        MPNET,
        MODERNBERT,
        LONGFORMER,
        BIG_BIRD,
        VIT,
    )
}
