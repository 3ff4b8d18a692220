"""Published model families: how their configs and weight names read in the words of this package.

Reading order: `base.py` (what a family is), `bert.py` (one of them), then any other; `keys.py` says which keys of a
`config.json` can matter, `labels.py` what labels are called.
"""

from heed.model.families.base import Family, Head
from heed.model.families.bert import BERT
from heed.model.families.big_bird import BIG_BIRD
from heed.model.families.deberta_v2 import DEBERTA_V2
from heed.model.families.distilbert import DISTILBERT
from heed.model.families.electra import ELECTRA
from heed.model.families.eurobert import EUROBERT
from heed.model.families.gemma3 import GEMMA3_TEXT
from heed.model.families.gte import GTE
from heed.model.families.jina_bert import JINA_BERT
from heed.model.families.longformer import LONGFORMER
from heed.model.families.modernbert import MODERNBERT
from heed.model.families.mpnet import MPNET
from heed.model.families.nomic_bert import NOMIC_BERT
from heed.model.families.qwen import QWEN2, QWEN3
from heed.model.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from heed.model.families.vit import VIT

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
        NOMIC_BERT,
        GTE,
        DEBERTA_V2,
        QWEN2,
        QWEN3,
        GEMMA3_TEXT,
        EUROBERT,
        JINA_BERT,
        LONGFORMER,
        BIG_BIRD,
        VIT,
    )
}
