"""Published model families: how their configs and weight names read in the words of this package.

Reading order: `base.py` (what a family is), `bert.py` (one of them), then any other.
"""

from model.families.base import Family, Head
from model.families.bert import BERT
from model.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

__all__ = ["FAMILIES", "Family", "Head"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        BERT,
        ROBERTA,
        XLM_ROBERTA,
        CAMEMBERT,
    )
}
