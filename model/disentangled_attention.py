"""Disentangled attention (He et al., 2021, DeBERTa): what a token says and how far away it is are scored apart.

    score(i, j) = (Q_i · K_j  +  Q_i · PK_d  +  K_j · PQ_d) / √(H · terms)        d = the row of distance i - j

`PK` and `PQ` are keys and queries of distances: projections of one table of vectors that all layers share, each with
projections of its own or with those of its tokens. The three products are the terms: content to content, content to
position (c2p), position to content (p2c); the last two can be left out.

Letters: B batch, L length, D width, N heads, H head width, S rows of the table, R = 2 L places of distances.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heed.model.attention import Attention, AttentionFunction, Bias
from heed.model.attention_config import AttentionVariant
from heed.model.attention_plan import AttentionPlan
from heed.model.config_checks import check_integers
from heed.model.norms import NormConfig
from heed.model.patterns import Full
from heed.model.score_functions import Dot
from heed.model.softmax import softmax


@dataclass(frozen=True)
class DistancesConfig:
    """A table of vectors for distances in both directions, as many to either side as `reach`.

    Without `farthest` each distance up to `reach` has a row. With it only those up to half of `reach` have, and farther
    ones share rows by their logarithm, up to `farthest`; beyond, all share the last.
    """

    reach: int
    farthest: int | None = None
    norm: NormConfig | None = None  # of the rows

    def __post_init__(self) -> None:
        check_integers(self, "reach", least=2)
        if self.farthest is not None:
            check_integers(self, "farthest", least=self.reach // 2 + 2)

    def rows(self, distance: Tensor) -> Tensor:
        """Query's column minus key's, any shape, to rows of the table."""
        signed = distance if self.farthest is None else self._by_logarithm(distance)
        return (signed + self.reach).clamp(0, 2 * self.reach - 1)

    def _by_logarithm(self, distance: Tensor) -> Tensor:
        half = self.reach // 2
        far = distance.abs().clamp(min=half)
        assert self.farthest is not None
        widest = torch.tensor((self.farthest - 1) / half, device=distance.device)
        steps = torch.log(far / half) / torch.log(widest) * (half - 1)
        return torch.where(distance.abs() <= half, distance, (steps.ceil().long() + half) * distance.sign())

    def build(self, heads: int, width: int, max_length: int) -> "Distances":
        return Distances(self, width, max_length)


class Distances(nn.Module):
    """The table, and which of its rows a distance has."""

    row_of_distance: Tensor

    def __init__(self, config: DistancesConfig, width: int, max_length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * config.reach, width))
        self.norm = config.norm.build(width) if config.norm else None
        self.max_length = max_length
        distances = torch.arange(-max_length, max_length + 1, device="cpu")
        self.register_buffer("row_of_distance", config.rows(distances), persistent=False)

    def forward(self) -> Tensor:
        """The vectors of all rows, `[S, D]`."""
        return self.table if self.norm is None else self.norm(self.table)

    def rows(self, distances_R: Tensor) -> Tensor:
        """The rows of distances between columns, `[R]`."""
        limit = self.max_length
        return self.row_of_distance[distances_R.clamp(-limit, limit) + limit]


@dataclass(frozen=True)
class DisentangledConfig(AttentionVariant):
    """Attention by content and by distance. The encoder's `relative_bias` must be a `DistancesConfig`."""

    heads: int
    content_to_position: bool = True
    position_to_content: bool = True
    shared_projections: bool = True  # distances are projected as tokens are

    aligned = True
    reads_distances = True

    def __post_init__(self) -> None:
        check_integers(self, "heads")
        if not self.content_to_position and not self.position_to_content:
            raise ValueError("disentangled attention needs one of content_to_position and position_to_content")

    def build(self, width: int, max_length: int) -> "DisentangledAttention":
        return DisentangledAttention(self, width)


class DisentangledAttention(Attention):
    """Every token sees every token."""

    position_key: nn.Linear | None
    position_query: nn.Linear | None

    def __init__(self, config: DisentangledConfig, width: int) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(f"width {width} does not divide into {config.heads} heads")
        self.config, self.heads = config, config.heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        apart = not config.shared_projections
        self.position_key = nn.Linear(width, width) if apart and config.content_to_position else None
        self.position_query = nn.Linear(width, width) if apart and config.position_to_content else None
        terms = 1 + config.content_to_position + config.position_to_content
        self.score = Dot(self.heads, width // self.heads)
        self.score.scale = 1 / math.sqrt(width // self.heads * terms)
        self.folded: tuple[Tensor, Tensor] | None = None  # see `folded_distances`

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        layout = plan.layout
        value_BNLH = layout.to_heads(self.value(x), self.heads)
        function, scores_BNLL = self._function(), self._scores(x, plan, bias)
        attended_BNLH = function.attend(scores_BNLL, plan.mask(Full()), plan.pairs.j, value_BNLH)
        return self.out(layout.from_heads(attended_BNLH))

    def weights(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        return self._function().weights(self._scores(x, plan, bias), plan.mask(Full()), plan.pairs.j)

    def _function(self) -> AttentionFunction:
        return AttentionFunction(self.score, softmax)

    def _scores(self, x: Tensor, plan: AttentionPlan, distances: Bias | None) -> Tensor:
        """`[B, N, L, L]`."""
        assert isinstance(distances, Distances), "EncoderConfig sees to it"
        query_BNLH = plan.layout.to_heads(self.query(x), self.heads)
        key_BNLH = plan.layout.to_heads(self.key(x), self.heads)
        scores_BNLL = self.score(query_BNLH, key_BNLH)
        keys_SD, queries_SD = self.folded or self.project(distances)
        length = plan.layout.real_BL.shape[1]
        behind_R = torch.arange(1 - length, length + 1, device=x.device)  # how far to the right of a token another is
        if self.config.content_to_position:
            keys_NRH = self._heads_of(keys_SD, distances.rows(-behind_R))
            scores_BNLL = scores_BNLL + shifted(self.score(query_BNLH, keys_NRH))
        if self.config.position_to_content:
            queries_NRH = self._heads_of(queries_SD, distances.rows(behind_R))
            scores_BNLL = scores_BNLL + shifted(self.score(key_BNLH, queries_NRH)).transpose(-1, -2)
        return scores_BNLL

    def project(self, distances: Distances) -> tuple[Tensor, Tensor]:
        """Keys and queries of all rows of the table, `[S, D]` each."""
        vectors_SD = distances()
        return (self.position_key or self.key)(vectors_SD), (self.position_query or self.query)(vectors_SD)

    def _heads_of(self, projected_SD: Tensor, rows_R: Tensor) -> Tensor:
        """Some rows by head, `[N, R, H]`."""
        return projected_SD[rows_R].reshape(rows_R.shape[0], self.heads, -1).transpose(0, 1)


def shifted(places_BNLR: Tensor) -> Tensor:
    """`out[i, j] = places[i, j - i + L - 1]`: from places of distances to columns, `[B, N, L, L]`.

    Each row begins one place further to the left than the one above, as rows do that are read end to end and cut one
    place shorter than they are (Dai et al., 2019, appendix B).
    """
    batch, heads, length, places = places_BNLR.shape
    end_to_end = places_BNLR.flatten(2)[:, :, length - 1 : -1]
    return end_to_end.reshape(batch, heads, length, places - 1)[..., :length]


@contextmanager
def folded_distances(encoder: nn.Module) -> Iterator[None]:
    """Inside, the projections of distances are constants, made once in float64: they do not depend on the input."""
    distances = next((each for each in encoder.modules() if isinstance(each, Distances)), None)
    layers = [each for each in encoder.modules() if isinstance(each, DisentangledAttention)]
    for layer in layers:
        assert distances is not None
        layer.folded = _projected(layer, distances)
    try:
        yield
    finally:
        for layer in layers:
            layer.folded = None


def _projected(layer: DisentangledAttention, distances: Distances) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        keys, queries = deepcopy(layer).double().project(deepcopy(distances).double())
    return keys.to(layer.key.weight.dtype), queries.to(layer.key.weight.dtype)
