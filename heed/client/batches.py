"""Large batches: split into several requests, and the answers joined into one.

Letters: B rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from grpc import StatusCode

from heed.client.wire import Answer, CallError

REQUEST_BYTES = 2**20  # of a request's rows together; a longer row is a request of its own
Arrays = Mapping[str, np.ndarray]
Row = TypeVar("Row")


class BatchBuilder(Generic[Row]):
    """Collects rows into batches of up to `max_rows` rows and, by their `size`, REQUEST_BYTES."""

    def __init__(self, max_rows: int, size: Callable[[Row], int]) -> None:
        self.batch: list[Row] = []
        self._bytes = 0
        self._max_rows, self._size = max_rows, size

    def add(self, row: Row) -> list[Row]:
        """The batch that this row completes, or that it does not fit into; else an empty list."""
        size = self._size(row)
        full: list[Row] = []
        if self._bytes + size > REQUEST_BYTES:
            full, self.batch, self._bytes = self.batch, [], 0
        self.batch.append(row)
        self._bytes += size
        if len(self.batch) == self._max_rows:
            full, self.batch, self._bytes = self.batch, [], 0
        return full


def batches(rows: Iterable[Row], max_rows: int, size: Callable[[Row], int]) -> Iterator[list[Row]]:
    builder = BatchBuilder(max_rows, size)
    for row in rows:
        if full := builder.add(row):
            yield full
    if builder.batch:
        yield builder.batch


def split(inputs: Arrays, max_rows: int) -> list[slice]:
    """The rows of each request, `B` in all. One request where inputs differ in B: the server reports the error."""
    counts = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
    if len(counts) != 1 or max(counts) < 2:
        return [slice(None)]
    texts = [array for array in inputs.values() if array.dtype.kind == "O"]
    fixed = sum(array[0].nbytes for array in inputs.values() if array.dtype.kind != "O")
    parts = batches(range(*counts), max_rows, lambda row: fixed + sum(map(_size, (array[row] for array in texts))))
    return [slice(part[0], part[-1] + 1) for part in parts]


def _size(element: object) -> int:
    """Bytes of a text, roughly, or of an array of texts."""
    if isinstance(element, np.ndarray):
        return sum(map(_size, element.flat))
    if isinstance(element, str | bytes):
        return len(element)
    raise TypeError(f"a text is expected, got {type(element).__name__}: {element!r:.60}")


class BundleCheck:
    """Checks that all answers come from one bundle: vectors of two models are not comparable."""

    def __init__(self) -> None:
        self._digest: str | None = None

    def check(self, answer: Answer) -> Answer:
        """Raises CallError."""
        if self._digest is None:
            self._digest = answer.digest
        if answer.digest != self._digest:
            raise CallError(
                StatusCode.ABORTED,
                f"another model took over while these rows were computed: some come from {self._digest}, others from "
                f"{answer.digest}; ask again for all of them",
            )
        return answer


def joined(answers: Sequence[Answer]) -> Answer:
    """The answers' rows concatenated, padded to the largest sizes as a server pads: with zeros, or with "".

    Raises:
        CallError: ABORTED, if they come from different bundles.
    """
    if len(answers) == 1:
        return answers[0]
    first, bundle = answers[0], BundleCheck()
    for answer in answers:
        bundle.check(answer)
    return Answer(
        outputs={name: stacked([answer[name] for answer in answers]) for name in first.outputs},
        digest=first.digest,
        provider=", ".join(dict.fromkeys(answer.provider for answer in answers)),
        precision=", ".join(dict.fromkeys(answer.precision for answer in answers)),
        queue_seconds=max(answer.queue_seconds for answer in answers),
        compute_seconds=sum(answer.compute_seconds for answer in answers),
    )


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays `[B, ...]` concatenated along B, padded to the largest sizes."""
    sizes = np.max([array.shape[1:] for array in arrays], axis=0)
    return np.concatenate([_padded(array, (len(array), *sizes)) for array in arrays])


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape == shape:
        return array
    padded = np.full(shape, "" if array.dtype.kind == "O" else 0, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


def with_rows(error: CallError, rows: slice) -> CallError:
    """The error, saying which rows of the batch its request had: messages count rows within their request."""
    if rows.start is None:
        return error
    last = rows.stop - 1
    details = f"{error.details} (rows {rows.start} to {last} of the batch, counted from 0 there)"
    return CallError(error.code, details, error.pushback, error.reason)
