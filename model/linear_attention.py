"""Linear attention: approximations whose time and memory are linear in the length. Padding takes part in none of them.

Each class is a mechanism in place of `ExactAttention`: it is made from `(heads, head_width)`, and options are given by
`functools.partial`.

Letters: B batch, L length, N heads, H head width, V head width of the values, R random features, P projected length.
"""

import math

import torch
from torch import Tensor, nn

from heed.model.attention import Bias, Mechanism
from heed.model.attention_plan import AttentionPlan
from heed.model.layout import Layout


def kernel_attention(query_BNLR: Tensor, key_BNLR: Tensor, value_BNLV: Tensor) -> Tensor:
    """`φ(Q) (φ(K)ᵀ V) / (φ(Q) Σ φ(K))`: the product in brackets first, so that no `[L, L]` comes up.

    Takes φ(Q) and φ(K), all of it positive; keys that do not count are 0. Without any the answer is 0.
    """
    ones_BNL1 = torch.ones_like(value_BNLV[..., :1])
    summed_BNRV1 = key_BNLR.transpose(-1, -2) @ torch.cat([value_BNLV, ones_BNL1], -1)
    attended = query_BNLR @ summed_BNRV1
    total = attended[..., -1:]
    return torch.where(total > 0, attended[..., :-1] / torch.where(total > 0, total, 1.0), 0.0)


def kernel_weights(query_BNLR: Tensor, key_BNLR: Tensor) -> Tensor:
    """The weights `[B, N, L, L]` that `kernel_attention` comes down to."""
    products = query_BNLR @ key_BNLR.transpose(-1, -2)
    total = products.sum(-1, keepdim=True)
    return torch.where(total > 0, products / torch.where(total > 0, total, 1.0), 0.0)


class KernelAttention(Mechanism):
    """Attention by a positive feature map φ in place of the exponential."""

    def query_features(self, query_BNLH: Tensor) -> Tensor:
        raise NotImplementedError

    def key_features(self, key_BNLH: Tensor, layout: Layout) -> Tensor:
        """0 at padding."""
        raise NotImplementedError

    def forward(
        self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLV: Tensor, plan: AttentionPlan, bias: Bias | None = None
    ) -> Tensor:
        return kernel_attention(self.query_features(query_BNLH), self.key_features(key_BNLH, plan.layout), value_BNLV)

    def weights(self, query_BNLH: Tensor, key_BNLH: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        return kernel_weights(self.query_features(query_BNLH), self.key_features(key_BNLH, plan.layout))


class LinearTransformer(KernelAttention):
    """`φ(x) = elu(x) + 1` (Katharopoulos et al., 2020)."""

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()

    def query_features(self, query_BNLH: Tensor) -> Tensor:
        return nn.functional.elu(query_BNLH) + 1

    def key_features(self, key_BNLH: Tensor, layout: Layout) -> Tensor:
        return torch.where(layout.real_BL[:, None, :, None], nn.functional.elu(key_BNLH) + 1, 0.0)


class Performer(KernelAttention):
    """FAVOR+: positive orthogonal random features, whose products approximate `exp(q·k / √H)` (Choromanski et al.,
    2021).

    The features are drawn once and kept with the weights.
    """

    def __init__(self, heads: int, head_width: int, features: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.projection = nn.Parameter(orthogonal_features(features, head_width, seed), requires_grad=False)
        self.scale = head_width**-0.25  # of queries and keys each, 1/√H of their product

    def _logs(self, x_BNLH: Tensor) -> Tensor:
        """The logarithms of the features, `w·x − |x|²/2`: `[B, N, L, R]`."""
        x = x_BNLH * self.scale
        return x @ self.projection.transpose(0, 1) - (x * x).sum(-1, keepdim=True) / 2

    def query_features(self, query_BNLH: Tensor) -> Tensor:
        logs = self._logs(query_BNLH)
        return stable_exp(logs - logs.amax(-1, keepdim=True))  # a factor for each query, gone in the quotient

    def key_features(self, key_BNLH: Tensor, layout: Layout) -> Tensor:
        real = layout.real_BL[:, None, :, None]
        logs = self._logs(key_BNLH)
        highest = torch.where(real, logs, torch.finfo(torch.float32).min).amax((-2, -1), keepdim=True)  # of real keys
        return torch.where(real, stable_exp(torch.where(real, logs - highest, 0.0)), 0.0)


def stable_exp(logs: Tensor) -> Tensor:
    """Never so small that the product of two is 0: a query that is far from every key takes their mean, not nothing."""
    return torch.exp(logs.clamp(min=-40.0))


def orthogonal_features(count: int, width: int, seed: int) -> Tensor:
    """`[count, width]`: rows orthogonal in blocks of `width`, each as long as a normal vector would be."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(-(-count // width)):
        square, upper = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        square = square * upper.diagonal().sign()  # QR's own signs would prefer one half of the directions
        lengths = torch.randn(width, width, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
        blocks.append(square.T * lengths)
    return torch.cat(blocks)[:count].float()


class Linformer(Mechanism):
    """Keys and values projected along the length, from L to P vectors (Wang et al., 2020).

    Takes up to `max_length` columns.
    """

    has_weights = False

    def __init__(self, heads: int, head_width: int, rank: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.scale = 1 / math.sqrt(head_width)
        self.key_projection = nn.Parameter(torch.randn(rank, max_length) / math.sqrt(max_length))
        self.value_projection = nn.Parameter(torch.randn(rank, max_length) / math.sqrt(max_length))

    def forward(
        self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLV: Tensor, plan: AttentionPlan, bias: Bias | None = None
    ) -> Tensor:
        columns_L = torch.arange(plan.layout.real_BL.shape[1], device=plan.layout.real_BL.device)
        real = plan.layout.real_BL[:, None, :, None]
        keys_BNPH = self.key_projection[:, columns_L] @ torch.where(real, key_BNLH, 0.0)
        values_BNPV = self.value_projection[:, columns_L] @ torch.where(real, value_BNLV, 0.0)
        weights_BNLP = ((query_BNLH * self.scale) @ keys_BNPH.transpose(-1, -2)).softmax(-1)
        return weights_BNLP @ values_BNPV

    def weights(self, query_BNLH: Tensor, key_BNLH: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        raise ValueError("Linformer attends to projections of the sequence; it has no weights between tokens")
