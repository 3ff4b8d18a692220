"""The attention weights' own loading and queue, with a model that says when it is done."""

import asyncio
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heed.bundle import BundleError
from heed.bundle.contract import CONTRACT, Finding
from heed.bundle.digests import listed_files, read_digests
from heed.bundle.files import BundleFiles
from heed.bundle.sequence_packing import Answer, TokenSequence
from heed.server.engine.model import Model
from heed.server.errors import FailedPrecondition
from heed.server.repository.attention_weights import Attentions
from heed.server.telemetry.metrics import Statistics
from tests.server.scheduling.support import submit
from tests.server.support import manifest_of, row

GOOD = Finding("a", "attentions", 1e-6, 1e-5)
BAD = Finding("a", "attentions", 1.0, 1e-5)


class Slow:
    """A model whose attention weights take until `gate` opens to load."""

    manifest = manifest_of("input_ids", outputs=["last_hidden_state", "attentions"])

    def __init__(self, *, finding: Finding = GOOD, error: Exception | None = None, gate_open: bool = True) -> None:
        self.loads = 0
        self.entered = threading.Event()
        self.gate = threading.Event()
        self._finding, self._error = finding, error
        if gate_open:
            self.gate.set()

    def check_attentions(self) -> Iterator[Finding]:
        self.loads += 1
        self.entered.set()
        assert self.gate.wait(10)
        if self._error:
            raise self._error
        return iter([self._finding])

    @property
    def attention_graphs(self) -> "Slow":
        return self

    def run(
        self, rows: Sequence[TokenSequence], outputs: Collection[str] = (), exclusive: bool = False
    ) -> list[Answer]:
        assert len(rows) == 1
        return [{"attentions": np.full((1, 1, len(each), len(each)), len(each))} for each in rows]


def attentions_of(model: Any, max_tokens: int = 1000) -> Attentions:
    return Attentions(model, max_tokens, Statistics())


async def test_files_that_are_altered_after_the_model_was_loaded_change_nothing(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """But for the contract: then nothing proves the attention weights."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))

    def loaded() -> Model:
        return Model(folder, "cpu", files=BundleFiles(folder, listed_files(folder, read_digests(folder))))

    model, other = loaded(), loaded()
    (folder / "attentions.fp32.onnx").write_bytes(b"")
    with (folder / "weights.fp32.data").open("r+b") as weights:
        weights.write(bytes(1000))
        weights.truncate(2000)
    _, report = await attentions_of(model).loaded()
    assert report.holds
    with (folder / CONTRACT).open("r+b") as contract:
        contract.write(b"altered")
    with pytest.raises(FailedPrecondition, match=r"contract\.npz is altered"):
        await attentions_of(other).loaded()


async def test_nothing_is_loaded_until_somebody_asks() -> None:
    model = Slow()
    attentions = attentions_of(model)
    await asyncio.sleep(0.01)
    assert model.loads == 0
    await attentions.close()


async def test_all_who_ask_wait_for_one_load() -> None:
    model = Slow(gate_open=False)
    attentions = attentions_of(model)
    waiting = [asyncio.create_task(attentions.loaded()) for _ in range(5)]
    assert await asyncio.to_thread(model.entered.wait, 10)
    assert not any(task.done() for task in waiting)
    model.gate.set()
    queues = {id(scheduler) for scheduler, _ in await asyncio.gather(*waiting)}
    assert (len(queues), model.loads) == (1, 1)
    scheduler, report = await attentions.loaded()
    assert report.findings == [GOOD]
    answered = await submit(scheduler, [row(1, 2), row(3)])
    assert [answer["attentions"].shape[-1] for answer in answered.answers] == [2, 1]
    await attentions.close()


async def test_the_load_goes_on_when_who_asked_first_leaves() -> None:
    model = Slow(gate_open=False)
    attentions = attentions_of(model)
    first = asyncio.create_task(attentions.loaded())
    assert await asyncio.to_thread(model.entered.wait, 10)
    second = asyncio.create_task(attentions.loaded())
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    model.gate.set()
    await second
    assert model.loads == 1
    await attentions.close()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Slow(finding=BAD), "the attention weights of made are not its reference's: attentions in case a is off by"),
        (Slow(error=BundleError("a.onnx is missing")), "of made cannot be served: a.onnx is missing"),
    ],
)
async def test_weights_that_are_not_the_references_are_refused_to_everyone(model: Slow, message: str) -> None:
    attentions = attentions_of(model)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match=message):
            await attentions.loaded()
    assert model.loads == 1
    await attentions.close()


async def test_closing_waits_for_a_load_that_has_begun() -> None:
    model = Slow(gate_open=False)
    attentions = attentions_of(model)
    asked = asyncio.create_task(attentions.loaded())
    assert await asyncio.to_thread(model.entered.wait, 10)
    closing = asyncio.create_task(attentions.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    model.gate.set()
    await closing
    await asked
