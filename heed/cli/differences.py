"""How far the answers of two bundles are apart on the same inputs: what `heed diff` computes.

Letters: B rows of a request, L tokens, D width, N vectors compared.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from heed.bundle import Manifest
from heed.bundle.contract import Case
from heed.bundle.digests import file_digest
from heed.bundle.manifest import TOKENIZER
from heed.bundle.sequence_packing import Arrays, Bools
from heed.server.engine.model import Model
from heed.server.errors import InvalidArgument

NOT_COMPARED = ("attentions", "tokens", "offsets")
VECTORS = ("last_hidden_state", "sentence_embedding", "unnormalized_embedding")  # what has a direction
QUANTILES = {"median": 0.5, "95 %": 0.95, "99 %": 0.99, "max": 1.0}


class Incompatible(ValueError):
    """Two bundles that have nothing to compare; the message says why."""


@dataclass(frozen=True)
class ComparedRequest:
    """One request for both bundles, and the names of its rows for people."""

    inputs: Arrays
    names: list[str]


@dataclass(frozen=True)
class RowDifference:
    """One output of one row in both bundles."""

    name: str
    errors_N: np.ndarray  # of each vector: the largest difference as a share of the row's largest value, or of 1
    cosines_N: np.ndarray  # 1 - cosine of each vector; empty for what has no direction

    @property
    def worst(self) -> float:
        return float(self.errors_N.max(initial=0.0))


@dataclass(frozen=True)
class ChangedLabel:
    """A label that is not the same in both bundles."""

    name: str
    old: str
    new: str


@dataclass
class Comparison:
    """What `compare` measured."""

    rows: dict[str, list[RowDifference]] = field(default_factory=dict)  # by output
    labels: int = 0  # compared
    changed: list[ChangedLabel] = field(default_factory=list)
    requests: int = 0
    refused: list[str] = field(default_factory=list)  # requests that one of the two refuses, and why
    left_out: dict[str, str] = field(default_factory=dict)  # outputs that both give and that mean different things

    def errors(self, output: str) -> np.ndarray:
        return np.concatenate([row.errors_N for row in self.rows[output]])

    def cosines(self, output: str) -> np.ndarray:
        return np.concatenate([row.cosines_N for row in self.rows[output]])

    def worst(self, output: str, count: int) -> list[RowDifference]:
        """The rows with the largest errors, those first."""
        return sorted(self.rows[output], key=lambda row: -row.worst)[:count]

    @property
    def largest(self) -> float:
        """The largest error of all outputs."""
        return max((row.worst for rows in self.rows.values() for row in rows), default=0.0)

    @property
    def share_changed(self) -> float:
        """Of the labels."""
        return len(self.changed) / self.labels if self.labels else 0.0

    def above(self, limits: Mapping[str, float]) -> dict[str, float]:
        """What is above its limit.

        Args:
            limits: by output, of its largest error; of "labels", the share that changed; of "", all other errors.

        Raises:
            Incompatible: an output with a limit was not compared.
        """
        measured = {output: max(row.worst for row in rows) for output, rows in self.rows.items()}
        measured |= {"labels": self.share_changed} if self.labels else {}
        if unknown := [name for name in limits if name and name not in measured]:
            raise Incompatible(f"--fail-above {unknown[0]}: only {_joined(measured)} were compared")
        everywhere = limits.get("", math.inf)
        own = {output: limits.get(output, math.inf if output == "labels" else everywhere) for output in measured}
        return {output: error for output, error in measured.items() if error > own[output]}


def quantiles(values_N: np.ndarray) -> dict[str, float]:
    """Quantiles that are measured values, without interpolation."""
    return {name: float(np.quantile(values_N, share, method="higher")) for name, share in QUANTILES.items()}


# --- What the manifests say ------------------------------------------------------------------------------------------


def manifest_differences(old: Model, new: Model) -> list[tuple[str, str, str]]:
    """What the two manifests say differently: what, old, new."""
    olds, news = _facts(old), _facts(new)
    whats = [*olds, *(what for what in news if what not in olds)]
    return [(what, olds.get(what, "-"), news.get(what, "-")) for what in whats if olds.get(what) != news.get(what)]


def _facts(model: Model) -> dict[str, str]:
    manifest = model.manifest
    facts = {
        "name": manifest.name,
        "version": str(manifest.version),
        "task": manifest.task,
        "family": manifest.provenance.family,
        "computed in": f"{model.precision} on {model.session.provider}",
        "precisions": ", ".join(manifest.precisions),
        "positions": manifest.position_rule.kind,
    }
    facts |= {f"takes {spec.name}": f"{spec.datatype} {spec.letters}" for spec in manifest.inputs}
    facts |= {f"gives {spec.name}": f"{spec.datatype} {spec.letters}" for spec in manifest.outputs}
    facts |= {f"limit of {name}": str(value) for name, value in manifest.limits.model_dump().items()}
    facts["labels"] = ", ".join(manifest.labels) or "none"
    facts |= {f"prompt {name}": repr(text) for name, text in manifest.prompts.items()}
    facts["default prompt"] = manifest.default_prompt_name or "none"
    facts["tokenizer"] = _tokenizer(model)[:12]
    return facts | {f"source {name}": digest[:12] for name, digest in manifest.provenance.source.items()}


def _tokenizer(model: Model) -> str:
    """The tokenizer's digest."""
    return file_digest(model.folder / TOKENIZER) if model.manifest.takes_text else "none"


# --- The requests -----------------------------------------------------------------------------------------------------


def comparable(old: Model, new: Model, asked: Collection[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The outputs to compare, and why those that both give are left out.

    Args:
        asked: the only ones to compare; all, if none is named.

    Raises:
        Incompatible: there is none to compare.
    """
    olds, news = _outputs(old.manifest), _outputs(new.manifest)
    left_out: dict[str, str] = {}
    for name in olds.keys() & news.keys():
        if olds[name] != news[name]:
            left_out[name] = f"{olds[name]} in the old one, {news[name]} in the new one"
        elif name == "logits" and sorted(old.manifest.labels) != sorted(new.manifest.labels):
            left_out[name] = f"the labels differ, so that columns mean something else: {_labels(old, new)}"
        elif name == "last_hidden_state" and _tokenizer(old) != _tokenizer(new):
            left_out[name] = "the tokenizers differ, so that each position may be another token"
    both = [name for name in olds if name in news and name not in left_out]
    if missing := [name for name in asked if name not in both]:
        raise Incompatible(f"{missing[0]} cannot be compared, only {_joined(both)}")
    names = [name for name in both if name in asked or not asked]
    if not names:
        why = "; ".join(f"{name} is {reason}" for name, reason in left_out.items())
        raise Incompatible(f"no output is the same in both: {why or f'{_joined(olds)} against {_joined(news)}'}")
    return names, left_out


def _outputs(manifest: Manifest) -> dict[str, str]:
    return {spec.name: spec.letters for spec in manifest.outputs if spec.name not in NOT_COMPARED}


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names)


def _labels(old: Model, new: Model) -> str:
    """Which labels one of two has and the other has not."""
    olds, news = old.manifest.labels, new.manifest.labels
    sides = {"old": [name for name in olds if name not in news], "new": [name for name in news if name not in olds]}
    return "; ".join(f"only the {side} one has {_joined(names)}" for side, names in sides.items() if names)


def _by_label(old: Model, new: Model, answers: Arrays) -> Arrays:
    """The new one's answers with the columns of its logits in the order of the old one's labels."""
    olds, news = old.manifest.labels, new.manifest.labels
    if "logits" not in answers or olds == news:
        return answers
    return answers | {"logits": answers["logits"][..., [news.index(name) for name in olds]]}


def requests_of_texts(texts: Sequence[str]) -> list[ComparedRequest]:
    """A request for each text."""
    return [ComparedRequest({"text": np.array([text], object)}, [text]) for text in texts]


def requests_of_contracts(old: Model, new: Model, cases: Sequence[Case]) -> list[ComparedRequest]:
    """The requests of contracts, each once. If the tokenizers differ only texts: ids mean other tokens then."""
    texts_only = _tokenizer(old) != _tokenizer(new)
    requests: dict[object, ComparedRequest] = {}
    for case in cases:
        if "text" in case.inputs or not texts_only:
            requests.setdefault(_key(case.inputs), ComparedRequest(case.inputs, _names(case)))
    return list(requests.values())


def _key(inputs: Arrays) -> object:
    return tuple((name, array.shape, str(array.tolist())) for name, array in sorted(inputs.items()))


def _names(case: Case) -> list[str]:
    """Each row's name: its text, or the case and the row's number."""
    if "text" not in case.inputs:
        rows = len(next(iter(case.inputs.values())))
        return [f"case {case.name}, row {row}" if rows > 1 else f"case {case.name}" for row in range(rows)]
    columns = [case.inputs[name] for name in ("text", "text_pair") if name in case.inputs]
    return [" | ".join(map(str, texts)) for texts in zip(*columns, strict=True)]


# --- The comparison ---------------------------------------------------------------------------------------------------


def compare(
    old: Model, new: Model, requests: Sequence[ComparedRequest], threads: int, outputs: Collection[str] = ()
) -> Comparison:
    """Sends each request to both bundles, several at a time.

    Args:
        outputs: the only ones to compare; all that both give, if none is named.

    Raises:
        Incompatible: no output is the same in both, or no request is taken by both.
    """
    names, left_out = comparable(old, new, outputs)
    comparison = Comparison(left_out=left_out)

    def answer_both(request: ComparedRequest) -> tuple[Arrays, Arrays] | str:
        try:
            return old.answer(request.inputs, names), _by_label(old, new, new.answer(request.inputs, names))
        except InvalidArgument as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        for request, answers in zip(requests, pool.map(answer_both, requests), strict=True):
            if isinstance(answers, str):
                comparison.refused.append(f"{request.names[0]}: {answers}")
            else:
                _add_request(comparison, request, _real(old, request.inputs), *answers)
    if not comparison.requests:
        raise Incompatible(_nothing_taken(old.manifest, new.manifest, comparison))
    return comparison


def _nothing_taken(old: Manifest, new: Manifest, comparison: Comparison) -> str:
    olds, news = (", ".join(spec.name for spec in manifest.inputs) for manifest in (old, new))
    first = f"; {comparison.refused[0]}" if comparison.refused else ""
    return f"no request is taken by both: the old one takes {olds}, the new one {news}{first}"


def _real(model: Model, inputs: Arrays) -> Bools | None:
    """Which tokens are not padding, `[B, L]`; None if none is."""
    if "text" in inputs:
        lengths = np.array([len(sequence) for sequence in model.preprocessor.preprocess(inputs).rows])
        return np.asarray(np.arange(lengths.max()) < lengths[:, None])
    return inputs["attention_mask"] == 1 if "attention_mask" in inputs else None


def _add_request(
    comparison: Comparison, request: ComparedRequest, real_BL: Bools | None, olds: Arrays, news: Arrays
) -> None:
    comparison.requests += 1
    for output, old in olds.items():
        for row, (name, before, after) in enumerate(zip(request.names, old, news[output], strict=True)):
            if output == "labels":
                _add_labels(comparison, name, np.atleast_1d(before), np.atleast_1d(after))
                continue
            per_token = before.ndim == 2
            real = real_BL[row] if per_token and real_BL is not None else slice(None)
            vectors = (before[real], after[real]) if per_token else (before[None], after[None])
            comparison.rows.setdefault(output, []).append(_row(output, name, *vectors))


def _add_labels(comparison: Comparison, name: str, old_L: np.ndarray, new_L: np.ndarray) -> None:
    """Compares the labels of one row; at padding both are ""."""
    pairs = [(str(old), str(new)) for old, new in zip(old_L, new_L, strict=True) if old or new]
    comparison.labels += len(pairs)
    comparison.changed += [ChangedLabel(name, old, new) for old, new in pairs if old != new]


def _row(output: str, name: str, old_ND: np.ndarray, new_ND: np.ndarray) -> RowDifference:
    old_ND, new_ND = old_ND.astype(np.float64), new_ND.astype(np.float64)
    scale = max(1.0, float(np.abs(old_ND).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        errors_N = np.abs(new_ND - old_ND).max(-1, initial=0.0) / scale
        cosines_N = cosine_distances(old_ND, new_ND) if output in VECTORS else np.empty(0)
    return RowDifference(name, _no_nan(errors_N), _no_nan(cosines_N))


def _no_nan(values_N: np.ndarray) -> np.ndarray:
    """The values with infinity in place of NaN."""
    return np.where(np.isnan(values_N), np.inf, values_N)


def cosine_distances(old_ND: np.ndarray, new_ND: np.ndarray) -> np.ndarray:
    """1 - cosine of each pair `[N]`, as half the squared distance of vectors of length 1: exact where it is small."""
    lengths = (np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (old_ND, new_ND))
    old_length, new_length = (np.where(length == 0, 1.0, length) for length in lengths)
    return np.asarray(((new_ND / new_length - old_ND / old_length) ** 2).sum(-1) / 2)


def count_by_decade(values_N: np.ndarray, lowest: int, highest: int) -> list[int]:
    """How many values each power of ten holds, from `lowest` to `highest`; values beyond an end count to that end."""
    with np.errstate(divide="ignore"):
        powers_N = np.floor(np.log10(values_N) + 1e-9)
    return [int((np.clip(powers_N, lowest, highest) == power).sum()) for power in range(lowest, highest + 1)]


def iter_texts(content: str) -> Iterator[str]:
    """The lines that are not empty."""
    return (line.strip() for line in content.splitlines() if line.strip())
