"""Many rows as several requests, and their answers as one.

Letters: B rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from grpc import StatusCode

from heed.client.wire import Answer, CallError

REQUEST_BYTES = 2**20  # that a request's rows may have together; a row that has more goes alone
Arrays = Mapping[str, np.ndarray]
Row = TypeVar("Row")


class Filling(Generic[Row]):
    """A batch being filled: up to `most` rows, and not more than REQUEST_BYTES by their `size`."""

    def __init__(self, most: int, size: Callable[[Row], int]) -> None:
        self.batch: list[Row] = []
        self._bytes = 0
        self._most, self._size = most, size

    def add(self, row: Row) -> list[Row]:
        """A batch that is full now, if one is."""
        size = self._size(row)
        full: list[Row] = []
        if self._bytes + size > REQUEST_BYTES:
            full, self.batch, self._bytes = self.batch, [], 0
        self.batch.append(row)
        self._bytes += size
        if len(self.batch) == self._most:
            full, self.batch, self._bytes = self.batch, [], 0
        return full


def batches(rows: Iterable[Row], most: int, size: Callable[[Row], int]) -> Iterator[list[Row]]:
    filling = Filling(most, size)
    for row in rows:
        if full := filling.add(row):
            yield full
    if filling.batch:
        yield filling.batch


def cut(inputs: Arrays, most: int) -> list[slice]:
    """The rows of each request, `B` in all. One request where inputs differ in B: the server says what is wrong."""
    counts = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
    if len(counts) != 1 or max(counts) < 2:
        return [slice(None)]
    texts = [array for array in inputs.values() if array.dtype.kind == "O"]
    fixed = sum(array[0].nbytes for array in inputs.values() if array.dtype.kind != "O")
    parts = batches(range(*counts), most, lambda row: fixed + sum(map(_bytes, (array[row] for array in texts))))
    return [slice(part[0], part[-1] + 1) for part in parts]


def _bytes(element: object) -> int:
    """Of a text, roughly, or of an array of texts."""
    if isinstance(element, np.ndarray):
        return sum(map(_bytes, element.flat))
    if isinstance(element, str | bytes):
        return len(element)
    raise TypeError(f"a text is expected, got {type(element).__name__}: {element!r:.60}")


class OneBundle:
    """Sees to it that all answers come from one bundle: vectors of two do not belong side by side."""

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
    """Rows below rows, padded to the larger sizes as a server pads: with zeros, or with "". Raises CallError."""
    if len(answers) == 1:
        return answers[0]
    first, bundle = answers[0], OneBundle()
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
    """`[B, ...]` below each other."""
    sizes = np.max([array.shape[1:] for array in arrays], axis=0)
    return np.concatenate([_padded(array, (len(array), *sizes)) for array in arrays])


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape == shape:
        return array
    padded = np.full(shape, "" if array.dtype.kind == "O" else 0, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


def of_rows(error: CallError, rows: slice) -> CallError:
    """Messages count the rows of their request: this one says which those are."""
    if rows.start is None:
        return error
    last = rows.stop - 1
    return CallError(error.code, f"{error.details} (rows {rows.start} to {last} of the batch, counted from 0 there)")
