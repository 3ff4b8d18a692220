"""The contract: inputs chosen to hurt, the reference's answers to them, and how far an answer may be off.

The answers are computed by the PyTorch reference in float64 from the float32 weights. One function, `check`,
compares: `heed export` calls it on every graph it writes, the server before it says READY, `heed verify` on
demand, and the tests.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bundle.errors import BundleError
from bundle.manifest import Manifest
from bundle.packing import Arrays

CONTRACT = "contract.npz"
START_TOKENS = 1500  # what a server checks before it is ready; `heed verify` checks everything

# The largest error that each precision may have on each provider, as a share of `scale` (see `error_of`). The
# numbers follow from what the arithmetic can hold (float32 torch itself is 6e-6 away from float64 on MiniLM),
# not from what was measured here.
BUDGETS = {
    ("fp32", "CPUExecutionProvider"): 1e-5,
    ("fp32", "CUDAExecutionProvider"): 1e-5,  # with TF32 off, as the server sets it
}


@dataclass(frozen=True)
class Case:
    """One request and the reference's answer."""

    name: str
    inputs: Arrays
    outputs: Arrays  # float64; labels are unicode
    at_start: bool  # among the cases that a server checks before it is ready


@dataclass(frozen=True)
class Finding:
    """How one output of one case compares."""

    case: str
    output: str
    error: float  # in units of the budget's scale; infinity if there was no usable answer
    budget: float
    reason: str = ""  # why there was no usable answer

    @property
    def holds(self) -> bool:
        return self.error <= self.budget

    def __str__(self) -> str:
        off = f"has no usable answer ({self.reason})" if self.reason else f"is off by {self.error:.1e}"
        return f"{self.output} in case {self.case} {off}, {self.budget:.0e} is allowed"


@dataclass(frozen=True)
class Report:
    """What a check found."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return bool(self.findings) and all(finding.holds for finding in self.findings)

    @property
    def worst(self) -> Finding:
        return max(self.findings, key=lambda finding: finding.error / finding.budget)


def error_of(answer: np.ndarray, reference: np.ndarray) -> float:
    """The largest absolute difference, divided by max(1, the largest absolute reference value)."""
    scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
    return float(np.abs(answer.astype(np.float64) - reference).max(initial=0.0)) / scale


def _compare(case: Case, output: str, answers: Arrays, budget: float) -> Finding:
    reference = case.outputs[output]
    if output not in answers:
        return Finding(case.name, output, np.inf, budget, f"no {output} in the answer")
    answer = answers[output]
    if answer.shape != reference.shape:
        return Finding(case.name, output, np.inf, budget, f"shape {answer.shape}, expected {reference.shape}")
    if output == "labels":
        wrong = _wrong_label(answer, reference, case.outputs["logits"], budget)
        return Finding(case.name, output, np.inf if wrong else 0.0, budget, wrong)
    if not np.isfinite(reference).all():
        return Finding(case.name, output, np.inf, budget, "NaN or infinity in the reference")
    if not np.isfinite(answer).all():
        return Finding(case.name, output, np.inf, budget, "NaN or infinity in the answer")
    return Finding(case.name, output, error_of(answer, reference), budget)


def _wrong_label(answer: np.ndarray, reference: np.ndarray, logits: np.ndarray, budget: float) -> str:
    """The first label `[...]` that is not the reference's, in words; empty if there is none.

    Labels whose logits `[..., labels]` are so close that the budget lets either win are not compared.
    """
    answer, reference = answer.astype(str), reference.astype(str)
    differ = answer != reference
    if logits.shape[-1] > 1:
        scale = max(1.0, float(np.abs(logits).max()))
        second, best = np.moveaxis(np.sort(logits, -1)[..., -2:], -1, 0)
        # At padding the label is "" and the logits are zeros: there is nothing to win.
        differ &= (best - second > 2 * budget * scale) | (answer == "") | (reference == "")
    if not differ.any():
        return ""
    index = np.argwhere(differ)[0]
    return f"labels{index.tolist()} is {str(answer[tuple(index)])!r}, expected {str(reference[tuple(index)])!r}"


UNPROVEN = ("tokens", "offsets")  # the tokenizer's own words, which no graph computes


def check_complete(manifest: Manifest, cases: list[Case]) -> None:
    """Raises BundleError if the manifest declares what the cases do not try: an output, a length, an id."""
    plain = {spec.name for spec in manifest.outputs} - {"attentions", *UNPROVEN}
    for case in cases:
        if unproven := sorted(plain - case.outputs.keys()):
            raise BundleError(f"{CONTRACT}: case {case.name} has no {unproven[0]}")
    if manifest.gives_attentions and not any("attentions" in case.outputs for case in cases):
        raise BundleError(f"{CONTRACT}: no case has attentions")
    longest = max(_columns(manifest, case) for case in cases)
    if longest != manifest.limits.length:
        raise BundleError(f"{CONTRACT} tries {longest} tokens at most, the manifest allows {manifest.limits.length}")
    ids = [case.inputs["input_ids"] for case in cases if "input_ids" in case.inputs]
    largest = max((int(array.max()) for array in ids), default=-1)
    if manifest.limits.vocabulary and largest != manifest.limits.vocabulary - 1:
        raise BundleError(f"{CONTRACT} tries ids up to {largest}, the manifest allows {manifest.limits.vocabulary - 1}")


def _columns(manifest: Manifest, case: Case) -> int:
    """The columns of a case's rows; 0 for texts, which are shorter than what tensors may be."""
    if manifest.image and "pixel_values" in case.inputs:
        return manifest.image.tokens
    return max((case.inputs[name].shape[1] for name in ("input_ids", "features") if name in case.inputs), default=0)


def check(
    cases: Iterable[Case], answer: Callable[[Arrays, list[str]], Arrays], precision: str, provider: str
) -> Iterator[Finding]:
    """Compares `answer(inputs, outputs)` with the reference for every case, and yields a finding for every output.

    An answer that raises is a finding, not an error: a wrong bundle may fail in any way.
    """
    budget = BUDGETS[precision, provider]
    for case in cases:
        try:
            answers = answer(case.inputs, list(case.outputs))
        except Exception as error:
            yield from (Finding(case.name, output, np.inf, budget, str(error)) for output in case.outputs)
            continue
        yield from (_compare(case, output, answers, budget) for output in case.outputs)


def write_contract(folder: Path, cases: list[Case]) -> None:
    arrays: Arrays = {"at_start": np.array([case.name for case in cases if case.at_start])}
    for case in cases:
        arrays |= {f"{case.name}/in/{name}": array for name, array in case.inputs.items()}
        arrays |= {f"{case.name}/out/{name}": array for name, array in case.outputs.items()}
    np.savez(folder / CONTRACT, allow_pickle=False, **arrays)


def read_contract(folder: Path) -> list[Case]:
    """Raises BundleError if there is no contract or it cannot be read."""
    try:
        with (folder / CONTRACT).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            at_start = set(arrays["at_start"].tolist())
            parts: dict[str, dict[str, Arrays]] = {}
            for key in arrays.files:
                if key != "at_start":
                    case, side, name = key.split("/")
                    array = arrays[key]
                    texts = array.dtype.kind == "U"  # stored as plain unicode, so that nothing is ever unpickled
                    parts.setdefault(case, {"in": {}, "out": {}})[side][name] = array.astype(object) if texts else array
    except FileNotFoundError:
        raise BundleError(f"{folder} has no {CONTRACT}") from None
    except Exception as error:  # a damaged file makes numpy raise almost anything
        raise BundleError(f"{folder / CONTRACT} is damaged: {error}") from None
    if not parts:
        raise BundleError(f"{folder / CONTRACT} has no cases")
    if not at_start & parts.keys():
        raise BundleError(f"{folder / CONTRACT} has no case for a start")
    return [Case(name, sides["in"], sides["out"], name in at_start) for name, sides in parts.items()]
