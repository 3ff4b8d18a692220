"""Ways to answer many requests with one embedding each: what is compared with what.

A way takes requests and how much goes together, prepares what needs no GPU, and returns what is timed: a function that
answers all of them. Every answer ends in the host's memory.

Letters: B batch, L length, T tokens, D width.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.bare import Request, padded
from bench.gpu.attend import EndToEnd, sdpa, swapped, varlen
from bench.gpu.bound import Bound, open_session
from heed.bundle.manifest import Device
from heed.bundle.sequence_packing import Arrays, TokenSequence, by_length, pack
from heed.model import Encoder
from heed.model.attention_plan import AttentionPlan
from heed.server.engine.graph_runner import Graphs
from heed.server.engine.session import Session

EMBEDDING = "sentence_embedding"


@dataclass(frozen=True)
class Asked:
    """Requests, as callers send them and without their padding, in the order of their lengths."""

    requests: Sequence[Request]
    members: Sequence[TokenSequence]

    @property
    def lengths(self) -> list[int]:
        return [len(member) for member in self.members]

    def batches(self, size: int) -> Iterator[slice]:
        """So many neighbours at a time."""
        yield from (slice(first, first + size) for first in range(0, len(self.members), size))

    def groups(self, tokens: int) -> Iterator[slice]:
        """Neighbours of so many tokens together, at most."""
        first, room = 0, tokens
        for place, length in enumerate(self.lengths):
            if length > room and place > first:
                yield slice(first, place)
                first, room = place, tokens
            room -= length
        yield slice(first, len(self.members))


Work = Callable[[], np.ndarray]  # `[requests, D]`
Make = Callable[[Asked, int], Work]


def feeds_of(group: Sequence[TokenSequence]) -> Arrays:
    """What any of heed's graphs may ask for."""
    feeds = pack(group)
    return feeds | by_length(feeds)


def one_by_one(run: Callable[[Arrays], np.ndarray]) -> Make:
    """Group after group, through heed's graph or one of its inputs and outputs."""

    def make(asked: Asked, tokens: int) -> Work:
        feeds = [feeds_of(asked.members[group]) for group in asked.groups(tokens)]
        return lambda: np.concatenate([run(each) for each in feeds])

    return make


def in_threads(run: Callable[[Arrays], np.ndarray], pool: ThreadPoolExecutor) -> Make:
    """The same from several threads, as the server's workers do it."""

    def make(asked: Asked, tokens: int) -> Work:
        feeds = [feeds_of(asked.members[group]) for group in asked.groups(tokens)]
        return lambda: np.concatenate(list(pool.map(run, feeds)))

    return make


def with_packing(graphs: Graphs, pool: ThreadPoolExecutor) -> Make:
    """The same with what a server has to do for each group: pack it, and take the answers apart."""

    def make(asked: Asked, tokens: int) -> Work:
        groups = [asked.members[group] for group in asked.groups(tokens)]
        run = partial(graphs.run, outputs=[EMBEDDING])
        return lambda: np.stack([answer[EMBEDDING] for some in pool.map(run, groups) for answer in some])

    return make


def fetch(runtime: Session) -> Callable[[Arrays], np.ndarray]:
    return lambda feeds: runtime.run(feeds, [EMBEDDING])[EMBEDDING]


def fetch_all(runtime: Session) -> Callable[[Arrays], np.ndarray]:
    return lambda feeds: runtime.run(feeds)[EMBEDDING]


def bound(graph: Path, device: Device, width: int) -> Callable[[Arrays], np.ndarray]:
    """Through fixed buffers. The hidden states stay on the device."""
    session = Bound(graph, device, lambda feeds: {EMBEDDING: (len(feeds["slots"]), width)})
    return lambda feeds: session.run(feeds)[EMBEDDING]


def padded_graph(graph: Path, device: Device, padding_id: int) -> Make:
    """The graph that anybody would export, in plain onnxruntime."""
    session = open_session(graph, device)
    names = {node.name for node in session.get_inputs()}

    def make(asked: Asked, size: int) -> Work:
        feeds = [padded(asked.requests[batch], padding_id) for batch in asked.batches(size)]
        feeds = [{name: array for name, array in each.items() if name in names} for each in feeds]
        return lambda: np.concatenate([session.run([EMBEDDING], each)[0] for each in feeds])

    return make


def half(encoder: Encoder, device: Device) -> Encoder:
    return copy.deepcopy(encoder).half().to(device)


def _tensors(arrays: Arrays, device: Device) -> dict[str, Tensor]:
    """On the host, in pinned memory where that makes a difference."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: tensor.pin_memory() for name, tensor in tensors.items()} if device == "cuda" else tensors


def _all(run: Callable[[dict[str, Tensor]], Tensor], prepared: list[dict[str, Tensor]], device: Device) -> Work:
    """Everything is sent and computed without waiting in between, and fetched at once: no server could do better."""

    @torch.inference_mode()
    def work() -> np.ndarray:
        sent = ({name: tensor.to(device, non_blocking=True) for name, tensor in each.items()} for each in prepared)
        answers: np.ndarray = torch.cat([run(each) for each in sent]).float().cpu().numpy()
        return answers

    return work


def torch_padded(encoder: Encoder, device: Device, compiled: bool = False) -> Make:
    """torch in float16 with its own attention."""
    model = swapped(half(encoder, device), sdpa)
    call = torch.compile(model, dynamic=True) if compiled else model
    padding_id = encoder.config.position_rule.padding_id

    def run(inputs: dict[str, Tensor]) -> Tensor:
        answers: dict[str, Tensor] = call(**inputs)
        return answers[EMBEDDING]

    def make(asked: Asked, size: int) -> Work:
        prepared = [_tensors(padded(asked.requests[batch], padding_id), device) for batch in asked.batches(size)]
        return _all(run, prepared, device)

    return make


def torch_end_to_end(encoder: Encoder, device: Device) -> Make:
    """torch in float16 without padding: flash attention over rows of any length."""
    model = swapped(half(encoder, device), varlen)

    def run(inputs: dict[str, Tensor]) -> Tensor:
        layout = EndToEnd(
            slots_BL=inputs["slots"],
            rows_T=inputs["rows"],
            columns_T=inputs["columns"],
            real_BL=inputs["real"],
            positions=inputs["position_ids"],
            ends_B1=inputs["ends"],
            longest=inputs["slots"].shape[1],
        )
        return model.encode(inputs, AttentionPlan(layout))[EMBEDDING]

    def make(asked: Asked, tokens: int) -> Work:
        prepared = []
        for group in asked.groups(tokens):
            ends = np.array([0, *accumulate(asked.lengths[group])], np.int32)
            prepared.append(_tensors(pack(asked.members[group]) | {"ends": ends}, device))
        return _all(run, prepared, device)

    return make


def reference(encoder: Encoder, device: Device) -> Make:
    """The model itself in float64, over padded rows."""
    model = copy.deepcopy(encoder).double().to(device)
    padding_id = encoder.config.position_rule.padding_id

    def make(asked: Asked, size: int) -> Work:
        prepared = [_tensors(padded(asked.requests[batch], padding_id), device) for batch in asked.batches(size)]

        @torch.inference_mode()
        def work() -> np.ndarray:
            rows = [{name: tensor.to(device) for name, tensor in each.items()} for each in prepared]
            return np.concatenate([model(**each)[EMBEDDING].cpu().numpy() for each in rows])

        return work

    return make
