"""The same model in plain onnxruntime, in one's own process: what heed is measured against.

Letters: B batch, L length, D width.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from heed.bundle.sequence_packing import Arrays
from heed.export.torch_to_onnx import OPSET
from heed.model import Encoder
from heed.server.engine.host import usable_cpus
from heed.server.engine.session import CPU

WINDOW = 32  # how many waiting requests a batch is chosen from
BATCH = 8
# As most programs do it: requests in their order, and onnxruntime's own threads.
PLAIN = ("padded, one by one, each on all cores", f"padded, batches of {BATCH} as they come, each on all cores")

Request = Arrays  # input_ids, attention_mask, token_type_ids: [L] each
Way = Callable[[Sequence[Request]], None]  # one way to answer all of them


class PaddedEncoder(nn.Module):
    """The encoder as its callers see it, with its outputs in a row: what anybody would export."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        """`[B, L]` in, `[B, L, D]` and `[B, D]` out."""
        return tuple(self.encoder(input_ids, attention_mask, token_type_ids).values())


def export_padded(encoder: Encoder, path: Path) -> None:
    """The bare loop's graph. Every example is a tensor of its own: equal ones would be merged."""
    examples = (
        torch.tensor([[5, 6, 7], [8, 9, 1]]),
        torch.tensor([[1, 1, 1], [1, 1, 0]]),
        torch.tensor([[0, 0, 1], [0, 1, 0]]),
    )
    shape = {0: Dim("batch"), 1: Dim("length")}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            PaddedEncoder(encoder).eval(),
            examples,
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=encoder.outputs,
            dynamic_shapes=(shape, shape, shape),
        )


def padded(requests: Sequence[Request], padding_id: int) -> Arrays:
    """Requests as one batch `[B, L]`, padded on the right."""
    shape = len(requests), max(len(request["input_ids"]) for request in requests)
    batch = {name: np.full(shape, padding_id if name == "input_ids" else 0) for name in requests[0]}
    for name, rows_BL in batch.items():
        for row_L, request in zip(rows_BL, requests, strict=True):
            row_L[: len(request[name])] = request[name]
    return batch


def session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """onnxruntime as it comes, but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(graph, options, providers=[CPU])


def batches(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """As they come."""
    yield from (requests[first : first + BATCH] for first in range(0, len(requests), BATCH))


def sorted_batches(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Of like length out of what waits."""
    for start in range(0, len(requests), WINDOW):
        yield from batches(sorted(requests[start : start + WINDOW], key=lambda request: len(request["input_ids"])))


def bare_ways(
    graph: Path, padding_id: int, pool: ThreadPoolExecutor, outputs: list[str] | None = None
) -> dict[str, Way]:
    """What a loop around the padded graph can do: `PLAIN`, with a thread for each core, or in batches of like length.
    `outputs` are those that are asked for; all if left out."""
    wide, narrow = session(graph, usable_cpus()), session(graph, 1)

    def in_turn(groups: Iterable[Sequence[Request]]) -> None:
        for group in groups:
            wide.run(outputs, padded(group, padding_id))

    def at_once(groups: Iterable[Sequence[Request]]) -> None:
        list(pool.map(lambda group: narrow.run(outputs, padded(group, padding_id)), groups))

    each, some = PLAIN
    return {
        each: lambda requests: in_turn([request] for request in requests),
        some: lambda requests: in_turn(batches(requests)),
        "padded, one by one, each on one core": lambda requests: at_once([request] for request in requests),
        f"padded, batches of {BATCH} as they come, each on one core": lambda requests: at_once(batches(requests)),
        f"padded, batches of {BATCH} in length order, each on all cores": lambda requests: in_turn(
            sorted_batches(requests)
        ),
        f"padded, batches of {BATCH} in length order, each on one core": lambda requests: at_once(
            sorted_batches(requests)
        ),
    }
