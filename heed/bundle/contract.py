"""The contract: inputs that reveal mistakes, the reference's answers to them, and how far an answer may be off.

The answers are computed by the PyTorch reference in float64 from the float32 weights. One function, `check`,
compares: `heed export` calls it for every graph that it writes, the server before it is READY, `heed verify` on
demand, and the tests.
"""

import math
import re
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import SEEK_END
from pathlib import Path
from typing import Literal, Self, overload

import numpy as np

from heed.bundle.errors import BundleError
from heed.bundle.manifest import Datatype, Manifest, TensorSpec
from heed.bundle.sequence_packing import Arrays

CONTRACT = "contract.npz"
START_TOKENS = 1500  # what a server checks before it is ready; `heed verify` checks everything

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
Measure = Literal["share", "cosine"]


@dataclass(frozen=True)
class Budget:
    """How far an answer may be off. Either measure is 0 for the reference's own answer and grows with the error.

    - share: the largest absolute difference, as a share of `scale` (see `error_of`).
    - cosine: 1 - cosine of the worst vector, along the last axis (see `cosine_distance`).
    """

    limit: float
    measure: Measure = "share"

    def used(self, answer: np.ndarray, reference: np.ndarray) -> float:
        """The error, by this measure."""
        return (error_of if self.measure == "share" else cosine_distance)(answer, reference)

    def decides(self, logits: np.ndarray) -> np.ndarray:
        """Where the best of the reference's logits `[..., labels]` wins whatever the budget allows, `[...]`."""
        second, best = np.moveaxis(np.sort(logits, -1)[..., -2:], -1, 0)
        if self.measure == "share":
            scale = max(1.0, float(np.abs(logits).max()))
            return np.asarray(best - second > 2 * self.limit * scale)
        # A vector turned so far has moved by √(2 limit) of its length, and the difference of two values by √2 of that.
        length = np.maximum(1.0, np.linalg.norm(logits, axis=-1))
        return np.asarray(best - second > 2 * math.sqrt(self.limit) * length)


@dataclass(frozen=True)
class Budgets:
    """The budgets of one precision on one provider, by the kind of output."""

    vectors: Budget  # hidden states, logits of two labels and more, embeddings of any length, attention weights
    unit_length: Budget  # embeddings of length 1
    scores: Budget  # logits of one label: of a single number a cosine knows the sign only

    @classmethod
    def uniform(cls, limit: float) -> Self:
        """The same limit for all outputs, as a share."""
        return cls(Budget(limit), Budget(limit), Budget(limit))

    def of(self, output: str, reference: np.ndarray) -> Budget:
        """The budget of an output, whose reference says whether its vectors have length 1."""
        if output == "logits" and reference.shape[-1] == 1:
            return self.scores
        if output == "sentence_embedding" and np.allclose(np.linalg.norm(reference, axis=-1), 1.0):
            return self.unit_length
        return self.vectors


# The numbers follow from what the arithmetic can hold (float32 torch itself is 6e-6 away from float64 on MiniLM), not
# from what was measured here. What is not in the table is neither proven nor served.
BUDGETS = {
    ("fp32", CPU): Budgets.uniform(1e-5),
    ("fp32", CUDA): Budgets.uniform(1e-5),  # with TF32 off, as the server sets it
    ("fp16", CUDA): Budgets(Budget(1e-2), unit_length=Budget(1e-4, "cosine"), scores=Budget(1e-2)),
    ("int8", CPU): Budgets(Budget(1e-2, "cosine"), unit_length=Budget(5e-3, "cosine"), scores=Budget(0.1)),
}
# Some models lose more than that in float32, whoever computes them: attention weights behind norms with outlying
# weights, say. Then an answer may be off by this many times the error of PyTorch's own float32 in that very case, but
# never by more than `WIDEST`: float16 has as much, and says that it is float16. Above `WIDE`, ten times what float32
# needs elsewhere, an export tells.
FLOAT32_FACTOR = 4
WIDE, WIDEST = 1e-4, 1e-2


def has_budget(precision: str, provider: str) -> bool:
    """Whether a precision is for a provider at all: float16 is for CUDA, int8 for the CPU."""
    return (precision, provider) in BUDGETS


@dataclass(frozen=True)
class Case:
    """One request and the reference's answer."""

    name: str
    inputs: Arrays
    outputs: Arrays  # float64; labels are unicode
    at_start: bool  # among the cases that a server checks before it is ready
    float32_errors: Mapping[str, float] = field(default_factory=dict)  # of PyTorch in float32, by output

    def float32_needs(self, output: str) -> float:
        """The share of scale that float32 needs here, whoever computes it; 0 where nothing is known."""
        return FLOAT32_FACTOR * self.float32_errors.get(output, 0.0)


@dataclass(frozen=True)
class Finding:
    """How one output of one case compares."""

    case: str
    output: str
    error: float  # by the measure; infinity if there was no usable answer
    budget: float
    reason: str = ""  # why there was no usable answer
    measure: Measure = "share"  # what error and budget count, see `Budget`
    precision: str = "fp32"

    @property
    def holds(self) -> bool:
        return self.error <= self.budget

    def __str__(self) -> str:
        off = f"has no usable answer ({self.reason})" if self.reason else f"is off by {self.error:.1e}"
        of = " of 1 - cosine" if self.measure == "cosine" else ""
        inside = "" if self.precision == "fp32" else f" in {self.precision}"
        return f"{self.output}{inside} in case {self.case} {off}, {self.budget:.0e}{of} is allowed"


@dataclass(frozen=True)
class Report:
    """The findings of one check."""

    findings: list[Finding] = field(default_factory=list)
    unproven: dict[str, str] = field(default_factory=dict)  # precisions that could not be compared, and why

    @property
    def holds(self) -> bool:
        return bool(self.findings) and all(finding.holds for finding in self.findings)

    @property
    def worst(self) -> Finding:
        return max(self.findings, key=lambda finding: finding.error / finding.budget)

    @property
    def verdict(self) -> str:
        """The outcome in words. float32's budget is that of rounding; other precisions have wider ones of their own."""
        rounded = sorted({finding.precision for finding in self.findings} - {"fp32"})
        if not rounded:
            return "equal to the reference" if self.holds else "not equal to the reference"
        of = f"the budget of {' and '.join(rounded)}"
        return f"within {of}" if self.holds else f"not within {of}"

    def by_precision(self) -> dict[str, "Report"]:
        """One report for each precision that was compared."""
        parts: dict[str, list[Finding]] = {}
        for finding in self.findings:
            parts.setdefault(finding.precision, []).append(finding)
        return {precision: Report(findings) for precision, findings in parts.items()}


def error_of(answer: np.ndarray, reference: np.ndarray) -> float:
    """The largest absolute difference, divided by max(1, the largest absolute reference value)."""
    scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
    return float(np.abs(answer.astype(np.float64) - reference).max(initial=0.0)) / scale


def cosine_distance(answer: np.ndarray, reference: np.ndarray) -> float:
    """1 - cosine of the vectors `[..., D]` that differ most, as half the squared distance of vectors of length 1.

    The direction of a short vector means little, and zeros have none: where the reference is shorter than 1 it is half
    the squared distance of the vectors as they are, as if both were a part of longer ones.
    """
    answer = answer.astype(np.float64)
    length, answered = (np.linalg.norm(each, axis=-1, keepdims=True) for each in (reference, answer))
    short = length < 1
    unit = reference / np.where(short, 1.0, length)
    answered_unit = answer / np.where(short | (answered == 0), 1.0, answered)
    return float(((answered_unit - unit) ** 2).sum(-1).max(initial=0.0)) / 2


def _compare(case: Case, output: str, answers: Arrays, budgets: Budgets) -> Finding:
    reference = case.outputs[output]
    budget = _budget(case, output, budgets)

    def unusable(reason: str) -> Finding:
        return _failed(case, output, budgets, reason)

    if output not in answers:
        return unusable(f"no {output} in the answer")
    answer = answers[output]
    if answer.shape != reference.shape:
        return unusable(f"shape {answer.shape}, expected {reference.shape}")
    if output == "labels":
        wrong = _wrong_label(answer, reference, case.outputs["logits"], budget)
        return unusable(wrong) if wrong else Finding(case.name, output, 0.0, budget.limit, "", budget.measure)
    if not np.isfinite(reference).all():
        return unusable("NaN or infinity in the reference")
    if not np.isfinite(answer).all():
        return unusable("NaN or infinity in the answer")
    return Finding(case.name, output, budget.used(answer, reference), budget.limit, "", budget.measure)


def _budget(case: Case, output: str, budgets: Budgets) -> Budget:
    """Labels have that of their logits."""
    decisive = "logits" if output == "labels" else output
    budget = budgets.of(decisive, case.outputs[decisive])
    if budget.measure == "cosine":
        return budget
    return replace(budget, limit=max(budget.limit, min(WIDEST, case.float32_needs(decisive))))


@dataclass(frozen=True)
class WideBudget:
    """An output that float32 does not hold as it holds others, in the case where that is worst."""

    output: str
    case: str
    float32_error: float  # of PyTorch, as a share of scale
    limit: float  # the budget that follows

    def __str__(self) -> str:
        return (
            f"{self.output} may be off by {self.limit:.0e} of scale in case {self.case}, where PyTorch's own float32 "
            f"is off by {self.float32_error:.0e}"
        )


def wide_budgets(cases: Iterable[Case]) -> list[WideBudget]:
    """The outputs that some case allows more than `WIDE`, each once, the widest first.

    Those above `WIDEST` are not answers any more: no bundle holds them.
    """
    widest: dict[str, WideBudget] = {}
    for case in cases:
        for output, error in case.float32_errors.items():
            limit = case.float32_needs(output)
            if limit > WIDE and (output not in widest or limit > widest[output].limit):
                widest[output] = WideBudget(output, case.name, error, limit)
    return sorted(widest.values(), key=lambda wide: -wide.limit)


def _wrong_label(answer: np.ndarray, reference: np.ndarray, logits: np.ndarray, budget: Budget) -> str:
    """The first label `[...]` that is not the reference's, in words; empty if there is none.

    Labels whose logits `[..., labels]` are so close that the budget lets either win are not compared.
    """
    answer, reference = answer.astype(str), reference.astype(str)
    differ = answer != reference
    if logits.shape[-1] > 1:
        # At padding the label is "" and the logits are zeros: there is nothing to win.
        differ &= budget.decides(logits) | (answer == "") | (reference == "")
    if not differ.any():
        return ""
    index = np.argwhere(differ)[0]
    return f"labels{index.tolist()} is {str(answer[tuple(index)])!r}, expected {str(reference[tuple(index)])!r}"


def plain_cases(cases: Iterable[Case]) -> list[Case]:
    """The cases without attention weights, which are requested separately."""
    return [_without_attentions(case) for case in cases]


def _without_attentions(case: Case) -> Case:
    return replace(case, outputs={name: array for name, array in case.outputs.items() if name != "attentions"})


def attention_cases(cases: Iterable[Case]) -> list[Case]:
    """The cases with attention weights: these, and the plain answers of the graph that computes them."""
    return [replace(case, name=f"{case.name} with attentions") for case in cases if "attentions" in case.outputs]


NOT_COMPARED = ("tokens", "offsets", "scores")  # from the tokenizer and from logits; no graph computes them
# numpy's kinds: references are float64 where callers get FP32, and texts are objects after they are read.
KINDS: dict[Datatype, str] = {"BOOL": "b", "INT64": "i", "FP32": "f", "BYTES": "UO"}


def check_complete(manifest: Manifest, cases: list[Case]) -> None:
    """Raises BundleError if the manifest declares what the cases do not try: an output, a length, an id; or if a case
    has what the manifest does not declare.
    """
    plain = {spec.name for spec in manifest.outputs} - {"attentions", *NOT_COMPARED}
    if len(manifest.labels) == 1:  # it always wins
        plain -= {"labels"}
    for case in cases:
        if missing := sorted(plain - case.outputs.keys()):
            raise BundleError(f"{CONTRACT}: case {case.name} has no {missing[0]}")
        _check_arrays(manifest.inputs, case.inputs, case)
        compared = case if manifest.gives_attentions else _without_attentions(case)
        _check_arrays(manifest.outputs, compared.outputs, case)
        _check_labels(case)
    if manifest.gives_attentions and not any("attentions" in case.outputs for case in cases):
        raise BundleError(f"{CONTRACT}: no case has attentions")
    longest = max(_columns(manifest, case) for case in cases)
    if longest != manifest.limits.length:
        raise BundleError(f"{CONTRACT} tries {longest} tokens at most, the manifest allows {manifest.limits.length}")
    ids = [case.inputs["input_ids"] for case in cases if "input_ids" in case.inputs]
    largest = max((int(array.max(initial=-1)) for array in ids), default=-1)
    if manifest.limits.vocabulary and largest != manifest.limits.vocabulary - 1:
        raise BundleError(f"{CONTRACT} tries ids up to {largest}, the manifest allows {manifest.limits.vocabulary - 1}")


def _check_arrays(specs: Iterable[TensorSpec], arrays: Arrays, case: Case) -> None:
    """Raises BundleError if an array is not as the manifest declares it: comparing it could fail in any way."""
    declared = {spec.name: spec for spec in specs}
    for name, array in arrays.items():
        if name not in declared:
            raise BundleError(f"{CONTRACT}: case {case.name} has {name}, which the manifest does not declare")
        spec = declared[name]
        fits = array.ndim == len(spec.shape) and all(
            size in (-1, found) for size, found in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in KINDS[spec.datatype]:
            raise BundleError(
                f"{CONTRACT}: {name} of case {case.name} is {array.dtype} {list(array.shape)}, the manifest says "
                f"{spec.datatype} {spec.shape}; export the bundle again"
            )


def _check_labels(case: Case) -> None:
    """Raises BundleError if there are not as many labels as logits decide."""
    labels, logits = case.outputs.get("labels"), case.outputs.get("logits")
    if labels is not None and (logits is None or labels.shape != logits.shape[:-1]):
        found = "no logits" if logits is None else f"logits {list(logits.shape)}"
        raise BundleError(
            f"{CONTRACT}: case {case.name} has labels {list(labels.shape)} and {found}; export the bundle again"
        )


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

    Raises:
        BundleError: the precision is not for this provider.
    """
    if not has_budget(precision, provider):
        raise BundleError(f"{precision} is not for the {provider}: nothing says how far its answers may be off")
    budgets = BUDGETS[precision, provider]
    for case in cases:
        try:
            answers = answer(case.inputs, list(case.outputs))
        except Exception as error:
            findings = [_failed(case, output, budgets, str(error)) for output in case.outputs]
        else:
            findings = [_compare(case, output, answers, budgets) for output in case.outputs]
        yield from (replace(finding, precision=precision) for finding in findings)


def _failed(case: Case, output: str, budgets: Budgets, reason: str) -> Finding:
    budget = _budget(case, output, budgets)
    return Finding(case.name, output, np.inf, budget.limit, reason, budget.measure)


def write_contract(folder: Path, cases: list[Case]) -> None:
    arrays: Arrays = {"at_start": np.array([case.name for case in cases if case.at_start])}
    for case in cases:
        arrays |= {f"{case.name}/in/{name}": array for name, array in case.inputs.items()}
        arrays |= {f"{case.name}/out/{name}": array for name, array in case.outputs.items()}
        arrays |= {f"{case.name}/float32/{name}": np.array(error) for name, error in case.float32_errors.items()}
    np.savez(folder / CONTRACT, allow_pickle=False, **arrays)


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    """Raises ValueError if the arrays are larger than the file: a small one could fill the memory."""
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:  # numpy.savez compresses nothing
            raise ValueError(f"{member.filename} is compressed, it must be stored as it is; export the bundle again")
    if (sizes := sum(member.file_size for member in members)) > size:  # several may be the same bytes
        raise ValueError(f"its arrays have {sizes} bytes, the file {size}; export the bundle again")


# The beginning of an array in a file, as numpy.save writes it: version 1.0 of the format, for numbers and texts alone.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][biufU]\d+)', "
    rb"'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)


def _array(content: bytes) -> np.ndarray:
    """An array as it is stored.

    Not by `numpy.load`: that parses the header as Python, and Python 3.11 fails at this now and then while other
    threads run ("AST constructor recursion depth mismatch").

    Raises:
        ValueError: it is none, or one of Python's objects, which are never unpickled.
    """
    header = _HEADER.match(content)
    if not header:
        raise ValueError("an array has another header than numpy.save writes for numbers and texts")
    kind, transposed, sizes = (part.decode() for part in header.groups())
    shape = tuple(int(size) for size in sizes.replace(" ", "").split(",") if size)
    values = np.frombuffer(content, np.dtype(kind), math.prod(shape), header.end())
    return values.reshape(shape, order="F" if transposed == "True" else "C").copy()


def _error(array: np.ndarray) -> float:
    """Raises ValueError if it is not a number from 0 on."""
    if array.shape != () or array.dtype.kind != "f" or not 0 <= array < np.inf:
        raise ValueError(f"float32's error is {array!r}, expected a number from 0 on")
    return float(array)


class StoredCases(Sequence[Case]):
    """The cases of a contract, each read from the file when it is accessed, so that they are not in memory.

    The file stays open: whoever replaces it changes nothing here.
    """

    def __init__(self, folder: Path, at_start: bool = False) -> None:
        """
        Args:
            at_start: only those that a server checks before it is ready.

        Raises:
            BundleError: there is no contract, or it cannot be read.
        """
        self._path = folder / CONTRACT
        self._keys: dict[str, list[tuple[str, str]]] = {}  # side and name of each case's arrays
        with self._readable():
            file = self._path.open("rb")
            weakref.finalize(self, file.close)
            self._archive = zipfile.ZipFile(file)
            _check_sizes(self._archive, file.seek(0, SEEK_END))
            self._at_start = set(self._stored("at_start").tolist())
            for key in self._archive.namelist():
                if key != "at_start.npy":
                    case, side, name = key.removesuffix(".npy").split("/")
                    self._keys.setdefault(case, []).append((side, name))
        if not self._keys:
            raise BundleError(f"{self._path} has no cases")
        if not self._at_start & self._keys.keys():
            raise BundleError(f"{self._path} has no case for a start")
        self._names = [name for name in self._keys if not at_start or name in self._at_start]

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        """Raises BundleError: it cannot be read."""
        if isinstance(index, slice):
            return [self._read(name) for name in self._names[index]]
        return self._read(self._names[index])

    def _stored(self, key: str) -> np.ndarray:
        """Checked against the archive's index, which was read at the beginning: no file that another process writes
        into passes for the contract."""
        return _array(self._archive.read(f"{key}.npy"))

    def _read(self, case: str) -> Case:
        sides: dict[str, Arrays] = {"in": {}, "out": {}, "float32": {}}
        with self._readable():
            for side, name in self._keys[case]:
                array = self._stored(f"{case}/{side}/{name}")
                texts = array.dtype.kind == "U"  # stored as plain unicode, so that nothing is ever unpickled
                sides[side][name] = array.astype(object) if texts else array
            errors = {name: _error(array) for name, array in sides["float32"].items()}
        return Case(case, sides["in"], sides["out"], case in self._at_start, errors)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise BundleError(f"{self._path.parent} has no {CONTRACT}") from None
        except Exception as error:  # a damaged file makes zipfile raise almost anything
            raise BundleError(f"{self._path} is damaged: {error}") from None


def read_contract(folder: Path) -> list[Case]:
    """Raises BundleError if there is no contract or it cannot be read."""
    return list(StoredCases(folder))
