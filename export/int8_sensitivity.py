"""The linear layers that int8 cannot hold: those whose rounding moves the answers most stay float32.

In trained encoders few layers do most of the harm, those behind an activation with a few values far beyond the others
(Bondarenko et al., 2021). They are found by trying: each layer alone rounds as it would in int8, in PyTorch, and the
contract's budgets measure how far the answers moved.

Letters: K values of a token in, M values out.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from heed.bundle.contract import BUDGETS, CPU, Budget, Case
from heed.export.errors import ExportError
from heed.export.passes.quantize_to_int8 import LEAST, STEPS, linear_layers, quantized
from heed.export.progress import Progress, Work, no_progress
from heed.export.reference import same_threads
from heed.model import Encoder

USABLE = 0.9  # of the budget; the other cases of the contract need the rest
LEAST_SHARE = 0.5  # of the weights must be int8; a model that cannot have so many is none for int8
FEW_TOKENS, MANY_TOKENS = 128, 400  # padding included, of the cases for one layer alone and for many together


class _Rounding(nn.Module):
    """A linear layer as int8 computes it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        int8_MK, scale_M = quantized(layer.weight.detach().numpy())
        self.weight_MK = torch.from_numpy(int8_MK.astype(np.float32) * scale_M[:, None])
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        lowest, highest = x.aminmax(dim=-1, keepdim=True)
        scale = (highest - lowest).clamp(min=LEAST) / STEPS
        return nn.functional.linear(((x - lowest) / scale).round() * scale + lowest, self.weight_MK, self.bias)


@contextmanager
def _rounded(encoder: Encoder, names: Collection[str]) -> Iterator[None]:
    """The encoder with these layers as int8 computes them."""
    layers = linear_layers(encoder)
    try:
        for name in names:
            encoder.set_submodule(name, _Rounding(layers[name]))
        yield
    finally:
        for name in names:
            encoder.set_submodule(name, layers[name])


class _Trial:
    """An encoder whose answers to some cases are compared with the reference's."""

    def __init__(self, encoder: Encoder, cases: list[Case]) -> None:
        self._encoder, self._cases = encoder, list(cases)

    def harm(self, names: Collection[str]) -> float:
        """How much of the budget is used at worst if these layers are int8."""
        with _rounded(self._encoder, names):
            return max(map(self._harm, self._cases))

    def is_harmless(self, names: Collection[str]) -> bool:
        """Whether the answers stay within the budget if these layers are int8."""
        with _rounded(self._encoder, names):
            telling = next((case for case in self._cases if self._harm(case) > USABLE), None)
        if telling is not None:  # first from now on: it likely tells of the next layers, too
            self._cases.sort(key=lambda case: case is not telling)
        return telling is None

    def _harm(self, case: Case) -> float:
        tensors = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
        with torch.no_grad(), same_threads(case.inputs, self._encoder.config):
            answers = self._encoder(**tensors, attentions="attentions" in case.outputs)
        budgets = BUDGETS["int8", CPU]
        return max(
            _share_of(budgets.of(name, case.outputs[name]), answer.numpy(), case.outputs[name])
            for name, answer in answers.items()
        )


def _share_of(budget: Budget, answer: np.ndarray, reference: np.ndarray) -> float:
    """How much of a budget is used; infinity if there is no number, which `max` would pass over as if it were 0."""
    if not (np.isfinite(answer).all() and np.isfinite(reference).all()):
        return np.inf
    return budget.used(answer, reference) / budget.limit


def _tried(cases: list[Case], most_tokens: int) -> list[Case]:
    """The cases of a start that are tensors and no larger: every kind of mask and of token is among them.

    If all are larger, as a single large image is, the smallest: without any case every layer would seem harmless.
    """
    tensors = sorted((case for case in cases if case.at_start and "text" not in case.inputs), key=_tokens)
    return [case for case in tensors if _tokens(case) <= most_tokens] or tensors[:1]


def _tokens(case: Case) -> int:
    """Padding included."""
    return case.outputs["last_hidden_state"][..., 0].size


def _harmless(trial: _Trial, order: list[str], work: Work) -> list[str]:
    """As many layers as can be int8 together, the first ones of the order if possible."""
    fewest, most = 0, len(order)
    while fewest < most:
        count = (fewest + most + 1) // 2
        if trial.is_harmless(order[:count]):
            fewest = count
        else:
            most = count - 1
        work.done()
    found = order[:fewest]
    for name in order[fewest + 1 :]:  # the one after the last is known to be too much
        if trial.is_harmless([*found, name]):
            found.append(name)
        work.done()
    return found


def layers_to_keep(encoder: Encoder, cases: list[Case], progress: Progress = no_progress) -> list[str]:
    """The linear layers that must stay float32 for the others to be int8 within the budget.

    Raises:
        ExportError: so many must that int8 is not for this model.
    """
    layers = linear_layers(encoder)
    few, many = _Trial(encoder, _tried(cases, FEW_TOKENS)), _Trial(encoder, _tried(cases, MANY_TOKENS))
    if many.is_harmless(layers):
        return []
    work = Work(progress, len(layers) + len(layers).bit_length() + len(layers))
    alone = {}
    for name in layers:
        alone[name] = few.harm([name])
        work.done()
    candidates = sorted((name for name in layers if alone[name] <= USABLE), key=alone.__getitem__)
    found = _harmless(many, candidates, work)
    weights = {name: layer.weight.numel() for name, layer in layers.items()}
    share = sum(weights[name] for name in found) / sum(weights.values())
    if share < LEAST_SHARE:
        raise ExportError(
            f"int8 cannot hold this model: {len(found)} of {len(layers)} linear layers, {share:.0%} of their weights, "
            f"can be int8 within the budget, and less than {LEAST_SHARE:.0%} is not worth it; export it without int8"
        )
    return [name for name in layers if name not in found]
