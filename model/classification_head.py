"""Classification: scores (logits) of labels for each token, or for the sequence.

Letters: B batch, L length, T tokens, D width, C labels. `...` is `[B, L]` or `[T]`, as the layout says.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from heed.model.feed_forward import ACTIVATIONS, Activation, check_activation
from heed.model.layout import Layout
from heed.model.norms import NormConfig
from heed.model.pooling import PoolingConfig, PoolingMode

SequencePooling = Literal["cls", "first_real", "lasttoken", "mean", "max"]
ScoreActivation = Literal["none", "sigmoid", "softmax"]


@dataclass(frozen=True)
class LabelsConfig:
    """Logits for named labels: one set for each sequence, or for each token.

    A single label makes a score: a cross-encoder's, say. Between the encoder and the logits there may be a hidden
    layer of width D.
    """

    names: tuple[str, ...]  # C of them
    per: Literal["sequence", "token"]
    pooling: SequencePooling = "cls"  # of a sequence; cls: column 0, whether it is real or not
    hidden: Activation | None = None  # the activation of the hidden layer; None: there is no such layer
    hidden_bias: bool = True
    hidden_norm: NormConfig | None = None  # after the activation
    pools_hidden: bool = False  # the hidden layer is of each token, and pooled afterwards
    bias: bool = True  # of the logits
    score_activation: ScoreActivation | None = None  # see `activation`

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"labels must have names of their own, got {self.names!r}")
        if self.per not in ("sequence", "token"):
            raise ValueError(f"labels are per sequence or per token, not per {self.per!r}")
        if self.pooling not in get_args(SequencePooling):
            raise ValueError(f"pooling mode {self.pooling!r} is none of {', '.join(get_args(SequencePooling))}")
        if self.hidden is not None:
            check_activation(self.hidden)
        known = get_args(ScoreActivation)
        if self.score_activation not in (None, *known):
            raise ValueError(f"score_activation {self.score_activation!r} is none of {', '.join(known)}")

    @property
    def activation(self) -> ScoreActivation:
        """What servers make scores of logits with: by default a sigmoid for a single label, a softmax for several."""
        return self.score_activation or ("sigmoid" if len(self.names) == 1 else "softmax")

    def build(self, width: int) -> "ClassificationHead":
        return ClassificationHead(self, width)


class ClassificationHead(nn.Module):
    """`[B, C]` for sequences, `[..., C]` for tokens."""

    def __init__(self, config: LabelsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        mode: PoolingMode = "cls" if config.pooling == "first_real" else config.pooling
        self.pooling = PoolingConfig(mode, unit_length=False).build(width)
        self.hidden = nn.Linear(width, width, bias=config.hidden_bias) if config.hidden else None
        self.activation = ACTIVATIONS[config.hidden]() if config.hidden else None
        self.norm = config.hidden_norm.build(width) if config.hidden_norm else None
        self.out = nn.Linear(width, len(config.names), bias=config.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if self.config.pools_hidden:
            return self.out(self._pooled(self._hidden(x), layout))
        return self.out(self._hidden(self._pooled(x, layout)))

    def _pooled(self, x: Tensor, layout: Layout) -> Tensor:
        if self.config.per == "token":
            return x
        return layout.first(x) if self.config.pooling == "cls" else self.pooling(x, layout)

    def _hidden(self, x: Tensor) -> Tensor:
        for layer in (self.hidden, self.activation, self.norm):
            if layer is not None:
                x = layer(x)
        return x
