"""The contract goes on while a model is served: what is found, what is said, and where."""

import asyncio
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import grpc
import numpy as np
import pytest

from heed.bundle.contract import CONTRACT, Case, StoredCases
from heed.bundle.sequence_packing import Answer, TokenSequence
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.engine.model import Model
from heed.server.repository.periodic_verification import Recheck
from heed.server.scheduling.batching import OneByOne
from heed.server.scheduling.model_queue import Run
from heed.server.scheduling.scheduler import Scheduler
from heed.server.scheduling.workers import Workers
from heed.server.telemetry.metrics import Metrics, ServedVersion
from tests.server.scheduling.support import submit
from tests.server.support import ids_request
from tests.support import Running, free_port, run_server, start_server, stop, wait_until_serving


class Spoiled:
    """A model's run, with an error in one output while it is told to make one, or with none at all."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.output = ""
        self.fails = False
        self.sizes: list[int] = []

    def __call__(self, group: Sequence[TokenSequence], outputs: frozenset[str], alone: bool) -> list[Answer]:
        self.sizes.append(len(group))
        if self.fails:
            raise RuntimeError("the device is gone")
        answers = self._run(group, outputs, alone)
        for answer in answers:
            if self.output:
                answer[self.output] = answer[self.output] + np.float32(2e-4)
        return answers


class Watch:
    """A model whose contract is repeated by hand."""

    def __init__(self, bundle: Path, run: Callable[[Run], Run] = Spoiled) -> None:
        self.model = Model(bundle, "cpu")
        self.run = run(self.model.graphs.run)
        self.scheduler = Scheduler(self.run, OneByOne(), Workers(2), max_tokens=1000)
        self.cases = StoredCases(bundle, at_start=True)
        self._metrics = Metrics()
        model = self.model
        labels = ServedVersion(model.manifest.name, "1", model.digest, model.precision, model.session.provider)
        shown = self._metrics.add(labels).contract
        self.recheck = Recheck(self.model, self.scheduler, self.cases, shown, seconds=0)

    def error(self, output: str) -> float:
        labels = {"model": self.model.manifest.name, "version": "1", "output": output}
        value = self._metrics.registry.get_sample_value("heed_contract_error", labels)
        assert value is not None
        return value

    def checks(self, result: str) -> int:
        labels = {"model": self.model.manifest.name, "version": "1", "result": result}
        return int(self._metrics.registry.get_sample_value("heed_contract_checks_total", labels) or 0)


async def test_what_holds_is_counted_and_nothing_is_said(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(tiny_bundle)
    for case in watch.cases:
        await watch.recheck.repeat(case)
    assert (watch.checks("holds"), watch.checks("broken")) == (len(watch.cases), 0)
    assert 0 < watch.error("last_hidden_state") < 1
    assert 0 < watch.error("sentence_embedding") < 1
    assert caplog.records == []
    await watch.scheduler.close()


async def test_what_no_longer_holds_is_said_and_shown_until_that_case_holds_again(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(tiny_bundle)
    run, (first, second, *_) = watch.run, watch.cases
    assert isinstance(run, Spoiled)
    run.output = "sentence_embedding"
    await watch.recheck.repeat(first)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert re.match(
        rf"tiny no longer answers as its reference: sentence_embedding in case {first.name} is off by 2.0e-04, "
        "1e-05 is allowed",
        record.getMessage(),
    )
    assert (watch.checks("holds"), watch.checks("broken")) == (0, 1)
    assert watch.error("sentence_embedding") == pytest.approx(20, rel=0.1)
    assert watch.error("last_hidden_state") < 1
    run.output = ""
    await watch.recheck.repeat(second)
    assert watch.error("sentence_embedding") == pytest.approx(20, rel=0.1)
    await watch.recheck.repeat(first)
    assert watch.error("sentence_embedding") < 1
    assert (watch.checks("holds"), watch.checks("broken")) == (2, 1)
    await watch.scheduler.close()


async def test_a_case_that_no_longer_holds_is_repeated_until_it_does_and_refuses_meanwhile(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """And a contract that cannot be read is no drift."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    watch = Watch(folder)
    assert isinstance(watch.run, Spoiled)
    told: list[str] = []
    watch.recheck._on_drift = told.append

    async def until(true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not true():
                await asyncio.sleep(0.01)

    whole = (folder / CONTRACT).read_bytes()
    (folder / CONTRACT).write_bytes(b"")
    running = asyncio.create_task(watch.recheck.run())
    await asyncio.sleep(0.1)
    (folder / CONTRACT).write_bytes(whole)
    await until(lambda: watch.checks("holds") > 0)
    assert told == []
    watch.run.output = "sentence_embedding"
    await until(lambda: watch.checks("broken") > 3)
    held, reasons = watch.checks("holds"), set(told)
    (reason,) = reasons  # the same case each time
    assert reason.startswith("it no longer answers as its reference: sentence_embedding in case ")
    watch.run.output = ""
    await until(lambda: watch.checks("holds") > held + len(watch.cases))
    assert told.index("") == len(told) - 1
    running.cancel()
    await watch.scheduler.close()


async def test_no_answer_at_all_is_infinitely_wrong(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(tiny_bundle)
    assert isinstance(watch.run, Spoiled)
    watch.run.fails = True
    await watch.recheck.repeat(watch.cases[0])
    assert watch.error("last_hidden_state") == np.inf
    assert "has no usable answer (the device is gone)" in caplog.text
    await watch.scheduler.close()


async def test_cases_take_turns_and_their_rows_come_one_by_one(tiny_bundle: Path) -> None:
    watch = Watch(tiny_bundle)
    names: list[str] = []

    async def note(case: Case) -> None:
        names.append(case.name)
        await Recheck.repeat(watch.recheck, case)

    watch.recheck.repeat = note  # type: ignore[method-assign]
    running = asyncio.create_task(watch.recheck.run())
    async with asyncio.timeout(60):
        while len(names) <= len(watch.cases) + 1:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait({running})
    expected = [case.name for case in watch.cases]
    assert names[: len(expected) + 1] == [*expected, expected[0]]
    assert max(len(case.outputs["last_hidden_state"]) for case in watch.cases) > 1
    assert isinstance(watch.run, Spoiled)
    assert set(watch.run.sizes) == {1}
    await watch.scheduler.close()


async def test_callers_go_first(tiny_bundle: Path) -> None:
    """The gate is closed, so both workers are busy; the case that came first is computed last."""
    gate = threading.Event()

    def gated(run: Run) -> Run:
        def wait(group: Sequence[TokenSequence], outputs: frozenset[str], alone: bool) -> list[Answer]:
            assert gate.wait(60)
            return run(group, outputs, alone)

        return wait

    watch = Watch(tiny_bundle, gated)
    request = watch.model.preprocessor.preprocess({"input_ids": np.array([[2, 3, 4]])})
    busy = [asyncio.create_task(submit(watch.scheduler, request.rows)) for _ in range(2)]
    await asyncio.sleep(0)
    case = asyncio.create_task(watch.recheck.repeat(watch.cases[0]))
    await asyncio.sleep(0.05)
    caller = asyncio.create_task(submit(watch.scheduler, request.rows))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait({case, caller}, return_when=asyncio.FIRST_COMPLETED)
    assert caller.done()
    await asyncio.gather(case, *busy)
    assert watch.checks("holds") == 1
    await watch.scheduler.close()


# Over HTTP


def scrape(address: str) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus gets it."""
    with urlopen(f"http://{address}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def metrics_address(server: Running) -> str:
    words = server.log.read_text().split()
    return words[words.index("metrics") + 1]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("recheck") / "log"
    with run_server(tiny_bundle, log, "--recheck-seconds", "0.02") as running:
        until = time.monotonic() + 60
        while "comparisons" not in log.read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        yield running


def test_a_server_repeats_its_contract_and_shows_the_errors(server: Running) -> None:
    address = metrics_address(server)
    checks = 'heed_contract_checks_total{model="tiny",result="holds",version="1"}'
    first = scrape(address)
    until = time.monotonic() + 60
    while (now := scrape(address))[checks] < first[checks] + 5:
        assert time.monotonic() < until
    assert now[checks.replace("holds", "broken")] == 0
    errors = {name: value for name, value in now.items() if name.startswith("heed_contract_error{")}
    assert set(errors) == {
        f'heed_contract_error{{model="tiny",output="{output}",version="1"}}'
        for output in ("last_hidden_state", "sentence_embedding", "unnormalized_embedding")
    }
    assert all(0 < error < 1 for error in errors.values())
    assert now['heed_waiting_tokens{model="tiny",version="1"}'] == 0
    assert now["process_resident_memory_bytes"] > 1e6
    with grpc.insecure_channel(server.address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(ids_request([[2, 3]]), timeout=20)
    (info,) = (name for name in now if name.startswith("heed_model_info"))
    assert f'digest="{answer.parameters["digest"].string_param}"' in info
    assert 'precision="fp32",provider="CPUExecutionProvider"' in info


def test_answers_have_the_same_bits_while_the_contract_is_repeated(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        answers = {
            tuple(stub.ModelInfer(ids_request([[2, 5, 9], [3, 4, 4]]), timeout=20).raw_output_contents)
            for _ in range(50)
        }
    assert len(answers) == 1


def test_metrics_and_repeating_can_be_switched_off(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = ["--metrics-port", "-1", "--recheck-seconds", "0"]
    with run_server(tiny_bundle, tmp_path / "log", *flags):
        pass
    assert "metrics none" in " ".join((tmp_path / "log").read_text().split())


def test_metrics_on_a_port_in_use_stop_the_start_with_the_next_step(
    server: Running, tmp_path: Path, tiny_bundle: Path
) -> None:
    port = metrics_address(server).rsplit(":", 1)[1]
    second = start_server(tiny_bundle, tmp_path / "log", "--metrics-port", port)
    assert second.process.wait(60) == 2
    said = " ".join((tmp_path / "log").read_text().split())
    assert f"error: cannot listen on 127.0.0.1:{port} for metrics: Address already in use; --metrics-port" in said
    assert "Traceback" not in said


def test_metrics_are_there_while_the_server_loads(minilm_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    server = start_server(minilm_bundle, tmp_path / "log", "--metrics-port", str(port), "--linger-seconds", "0")
    try:
        until = time.monotonic() + 60
        found: dict[str, float] = {}
        while not found:
            assert time.monotonic() < until
            try:
                found = scrape(f"127.0.0.1:{port}")
            except URLError:
                time.sleep(0.02)
        assert not any(name.startswith("heed_model_info") for name in found)
        wait_until_serving(server)
        assert any(name.startswith("heed_model_info") for name in scrape(f"127.0.0.1:{port}"))
        assert stop(server) == 0
    finally:
        server.process.kill()
        server.process.wait()


def test_requests_are_timed_by_model_and_status(server: Running) -> None:
    address = metrics_address(server)

    def counted() -> dict[tuple[str, str], float]:
        names = [("tiny", "OK"), ("tiny", "INVALID_ARGUMENT"), ("", "NOT_FOUND")]
        now = scrape(address)
        return {
            (model, code): sum(
                now.get(f'heed_request_seconds_count{{code="{code}",method="{method}",model="{model}"}}', 0.0)
                for method in ("ModelInfer", "ModelStreamInfer")
            )
            for model, code in names
        }

    before = counted()
    with grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.ModelInfer(ids_request([[2, 3]]), timeout=20)
        for wrong in (ids_request([[-1]]), ids_request([[2]], model="made up by a caller")):
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(wrong, timeout=20)
        list(stub.ModelStreamInfer(iter([ids_request([[2, 3]]), ids_request([[-1]])])))
    grown = {name: value - before[name] for name, value in counted().items()}
    assert grown == {("tiny", "OK"): 2, ("tiny", "INVALID_ARGUMENT"): 2, ("", "NOT_FOUND"): 1}
    assert not any("made up" in name for name in scrape(address))


async def test_a_contract_that_cannot_be_read_any_more_is_said(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the proof goes on when it can be again."""
    bundle = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, bundle)
    watch = Watch(bundle)
    whole = (bundle / CONTRACT).read_bytes()
    (bundle / CONTRACT).write_bytes(b"")  # the very file, not another one in its place
    task = asyncio.create_task(watch.recheck.run())
    while not caplog.records:
        await asyncio.sleep(0.01)
    assert f"{bundle / CONTRACT} is damaged" in caplog.records[0].getMessage()
    (bundle / CONTRACT).write_bytes(whole)
    while not watch.checks("holds"):
        await asyncio.sleep(0.01)
    task.cancel()
    await watch.scheduler.close()
