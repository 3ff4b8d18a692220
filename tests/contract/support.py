"""An oracle that knows nothing of `model/`, requests of every kind, and the two clients that make them.

Letters: B batch, L length, D width.
"""

import atexit
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from transformers import AutoModel

from heed.bundle.sequence_packing import Arrays, Ints
from heed.client import Client

BUDGET = 1e-5  # of max(1, the largest absolute reference value)
TRITON_SCRIPT = Path(__file__).with_name("triton_script.py")

ClientKind = Literal["own", "triton"]
CLIENT_KINDS: tuple[ClientKind, ...] = ("own", "triton")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Where others want the cores too, torch's threads wait for each other many times longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Oracle:
    """`transformers` in float64, and pooling by hand."""

    def __init__(self, source: Path, pooling: Literal["", "mean", "cls"] = "") -> None:
        """`pooling` is followed by scaling to length 1."""
        self._network = AutoModel.from_pretrained(source, dtype=torch.float64, attn_implementation="eager").eval()
        self._pooling = pooling

    def answer(self, inputs: Arrays) -> Arrays:
        """What a server should say to tensors: float64, zeros at padding."""
        with torch.no_grad(), _one_thread():
            outputs = self._network(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        hidden_BLD = outputs.last_hidden_state.numpy()
        real_BL = inputs.get("attention_mask", np.ones_like(inputs["input_ids"])).astype(bool)
        answers = {"last_hidden_state": np.where(real_BL[:, :, None], hidden_BLD, 0.0)}
        if self._pooling == "mean":
            means = [row[real].sum(0) / real.sum() for row, real in zip(hidden_BLD, real_BL, strict=True)]
            answers["sentence_embedding"] = _unit(np.array(means))
        elif self._pooling == "cls":
            firsts = [row[real][0] for row, real in zip(hidden_BLD, real_BL, strict=True)]
            answers["sentence_embedding"] = _unit(np.array(firsts))
        return answers


def _unit(vectors_BD: np.ndarray) -> np.ndarray:
    unit_BD: np.ndarray = vectors_BD / np.sqrt((vectors_BD**2).sum(1, keepdims=True))
    return unit_BD


@dataclass(frozen=True)
class Served:
    """A model that is served, and what it must answer like."""

    address: str
    name: str
    oracle: Oracle
    vocabulary: int
    padding_id: int
    lengths: list[int]  # up to the longest that it takes
    batches: list[int]

    def requests(self, seed: int = 0) -> "Requests":
        return Requests(self.vocabulary, seed)


class Requests:
    """Random requests to one model."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self._vocabulary = vocabulary
        self._random = np.random.default_rng(seed)

    def of(self, mask_BL: Ints) -> Arrays:
        """All three inputs, with random ids under the mask too."""
        return {
            "input_ids": self._random.integers(0, self._vocabulary, mask_BL.shape),
            "attention_mask": mask_BL,
            "token_type_ids": self._random.integers(0, 2, mask_BL.shape),
        }

    def lengths(self, batch: int, longest: int) -> list[int]:
        return [int(length) for length in self._random.integers(1, longest + 1, batch)]

    def holes(self, batch: int, length: int, share: float = 0.4) -> Ints:
        """A random mask in which every row has a real token."""
        mask = (self._random.random((batch, length)) >= share).astype(np.int64)
        mask[np.arange(batch), self._random.integers(0, length, batch)] = 1
        return mask

    def sprinkled(self, inputs: Arrays, padding_id: int) -> Arrays:
        """The same with the padding id in a third of the columns, real ones and masked ones alike."""
        ids = inputs["input_ids"]
        return inputs | {"input_ids": np.where(self._random.random(ids.shape) < 1 / 3, padding_id, ids)}


def pads_right(lengths: list[int]) -> Ints:
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def pads_left(lengths: list[int]) -> Ints:
    return pads_right(lengths)[:, ::-1].copy()


def pads_in_the_middle(lengths: list[int]) -> Ints:
    """One half of each row's tokens at its start, the other at its end, and 4 columns or more between them."""
    columns = max(lengths) + 4
    starts = np.array([(length + 1) // 2 for length in lengths])[:, None]
    ends = np.array([columns - length // 2 for length in lengths])[:, None]
    column_L = np.arange(columns)
    return ((column_L < starts) | (column_L >= ends)).astype(np.int64)


def ask(kind: ClientKind, address: str, model: str, requests: list[Arrays], truncate: bool = False) -> list[Arrays]:
    """The answers to requests made one after the other. A text input is an array of unicode strings."""
    if kind == "own":
        with Client(address, model) as client:
            return [client.infer(request, truncate=truncate).outputs for request in requests]
    return _ask_by_tritonclient(address, model, requests, truncate)


def _ask_by_tritonclient(address: str, model: str, requests: list[Arrays], truncate: bool) -> list[Arrays]:
    with TemporaryDirectory() as folder:
        asked, answered = Path(folder, "requests.npz"), Path(folder, "answers.npz")
        parts = {f"{index}/{name}": array for index, request in enumerate(requests) for name, array in request.items()}
        np.savez(asked, **parts)  # type: ignore[arg-type]  # numpy takes one of the names for its own flag
        _have_answered([address, model, str(asked), str(answered), truncate])
        answers: list[Arrays] = [{} for _ in requests]
        with np.load(answered) as arrays:
            for key in arrays.files:
                index, name = key.split("/")
                answers[int(index)][name] = arrays[key]
    return answers


def _have_answered(order: list[str | bool]) -> None:
    process = _triton_process()
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(order), file=process.stdin, flush=True)
    line = process.stdout.readline()
    assert line, "the process with tritonclient has ended"
    failure = json.loads(line)
    assert failure is None, failure


@cache
def _triton_process() -> subprocess.Popen[str]:
    """A process that asks by tritonclient, one for all tests: it registers protobuf messages under the same names as
    heed does, so that one process cannot have both."""
    command = [sys.executable, "-W", "error", str(TRITON_SCRIPT)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def assert_close(answer: Arrays, reference: Arrays, what: str) -> None:
    """Every output is there, float32, and within the budget."""
    assert answer.keys() == reference.keys(), what
    for name, expected in reference.items():
        assert answer[name].dtype == np.float32, f"{what}: {name}"
        assert answer[name].shape == expected.shape, f"{what}: {name}"
        budget = BUDGET * max(1.0, float(np.abs(expected).max()))
        error = float(np.abs(answer[name].astype(np.float64) - expected).max())
        assert error <= budget, f"{what}: {name} is off by {error:.1e}, {budget:.1e} is allowed"


def assert_answers_as_transformers(served: Served, requests: list[Arrays]) -> None:
    """By both clients: within the budget where tokens are real, exactly 0 where they are not."""
    references = [served.oracle.answer(request) for request in requests]
    for kind in CLIENT_KINDS:
        answers = ask(kind, served.address, served.name, requests)
        for index, (request, answer, reference) in enumerate(zip(requests, answers, references, strict=True)):
            what = f"request {index} of shape {request['input_ids'].shape} by the {kind} client"
            assert_close(answer, reference, what)
            if "attention_mask" in request:
                assert not answer["last_hidden_state"][request["attention_mask"] == 0].any(), what
