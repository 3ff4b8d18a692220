"""What callers hear over gRPC when more is asked than can be done: whether, and when, another try is worth it."""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from heed.bundle.sequence_packing import Answer, TokenSequence
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub, add_GRPCInferenceServiceServicer_to_server
from heed.server.engine.model import Model
from heed.server.errors import Exhausted, Unavailable
from heed.server.protocols.open_inference.service import InferenceService
from heed.server.protocols.streams import Streams, Ticket, WeightedSemaphore
from heed.server.repository.model_repository import ModelRepository
from heed.server.repository.registry import ModelRegistry, ModelVersion, State
from heed.server.scheduling.batching import OneByOne
from heed.server.scheduling.scheduler import ADMITTED_SHARE, Scheduler, _retry_after
from heed.server.scheduling.workers import Workers
from heed.server.settings import Settings
from heed.server.telemetry.metrics import Metrics
from heed.server.telemetry.request_trace import Call, Observers, RequestTrace
from heed.server.transport.interceptors import ConcurrencyLimit, ErrorsToStatuses
from heed.server.transport.status import NEVER, PUSHBACK, SPREAD, retry_after_ms
from tests.server.support import ids_request, served_model

PACE = 0.1  # seconds that a token is expected to take
PATIENCE = 60
RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.001s",
                "maxBackoff": "0.001s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


class Overloaded:
    """A server with room for four tokens, whose one thread is held back by a request of one token."""

    def __init__(self, bundle: Path) -> None:
        self._model = Model(bundle, "cpu")
        self.gate = threading.Event()
        self.computed: list[int] = []  # the first id of each row
        self.codes: list[str] = []  # of every attempt
        self._workers = Workers(1)
        self.scheduler = Scheduler(self._run, OneByOne(), self._workers, max_tokens=4)
        self.stub: Any = None
        self.concurrency = ConcurrencyLimit(1000, lambda _: None)

    def _run(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
        self.computed.append(int(rows[0].tokens["input_ids"][0]))
        assert self.gate.wait(PATIENCE)
        return self._model.graphs.run(rows, outputs)

    def _ended(self, trace: RequestTrace) -> None:
        self.codes.append(trace.code)

    def ask(self, first: int, length: int = 1, timeout: float | None = None, **parameters: int) -> Any:
        request = ids_request([[first, *[6] * (length - 1)]])
        for name, value in parameters.items():
            request.parameters[name].uint64_param = value
        return self.stub.ModelInfer(request, timeout=timeout)

    async def waits(self, tokens: int) -> None:
        while self.scheduler.waiting_tokens != tokens:
            await asyncio.sleep(0.001)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Overloaded"]:
        registry = ModelRegistry()
        settings, metrics = Settings(bundle=self._model.folder, max_message_mib=1), Metrics()
        served = served_model(self._model, self.scheduler, metrics)
        registry.add(ModelVersion(self._model.manifest, state=State.READY, served=served))
        self.service = InferenceService(
            registry,
            ModelRepository(settings, registry, metrics),
            settings,
            Observers(self._ended),
            self.concurrency,
            Streams(),
        )
        server = grpc.aio.server(interceptors=[ErrorsToStatuses(metrics.refused)])
        add_GRPCInferenceServiceServicer_to_server(self.service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        options = [("grpc.service_config", json.dumps(RETRYING))]
        async with asyncio.timeout(PATIENCE), grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            self.stub = GRPCInferenceServiceStub(channel)
            held = asyncio.ensure_future(self.ask(5))
            while not self.computed:
                await asyncio.sleep(0.001)
            self.scheduler._queue.throughput.seconds_per_token = PACE
            try:
                yield self
            finally:
                self.gate.set()
            await held
        await server.stop(None)
        await served.close()
        self._workers.close()


@pytest.fixture
async def server(tiny_bundle: Path) -> AsyncIterator[Overloaded]:
    async with Overloaded(tiny_bundle).open() as server:
        yield server


def pushback_of(error: grpc.aio.AioRpcError) -> int:
    return int(str(dict(error.trailing_metadata())[PUSHBACK]))


async def test_who_does_not_take_his_answers_takes_no_slot_from_others(server: Overloaded) -> None:
    answers = WeightedSemaphore(1)
    before = Ticket(answers, None)
    await before.admit(1)
    call: Any = Call("", "", None)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        waits = group.create_task(
            server.service.answer_stream_request(call, ids_request([[5]]), Ticket(answers, before))
        )
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waits.done()
        assert server.concurrency._taken == 0
        before.release()
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.concurrency._taken == 1
        server.gate.set()
    assert not waits.result().error_message
    assert server.concurrency._taken == 0


def in_time(seconds: float) -> pb.ModelInferRequest:
    request = ids_request([[5]])
    request.id = "7"
    request.parameters["timeout"].int64_param = int(seconds * 1e6)
    return request


@pytest.mark.parametrize(("seconds", "waited", "refused"), [(1.0, 0.7, False), (1.0, 0.8, True), (8.0, 0.8, False)])
async def test_who_had_waited_for_most_of_his_time_when_he_was_read_is_refused(
    server: Overloaded, seconds: float, waited: float, refused: bool
) -> None:
    call: Any = Call("", "", None)  # type: ignore[arg-type]
    answer = server.service.refuse_late_request(call, in_time(seconds), waited)
    assert (answer is not None) == refused
    assert server.codes == ["RESOURCE_EXHAUSTED"] * refused
    assert server.service.refuse_late_request(call, ids_request([[5]]), waited) is None  # nobody said how long he waits
    if answer:
        assert "the request had waited 0.80 s of 1.00 s when it was read" in answer.error_message
        assert answer.infer_response.id == "7"
        said = answer.infer_response.parameters
        assert (said["status"].string_param, said["retry_after_ms"].int64_param) == ("RESOURCE_EXHAUSTED", NEVER)


@pytest.mark.parametrize(("wait", "code"), [(0.0, "CANCELLED"), (0.3, "DEADLINE_EXCEEDED")])
async def test_who_leaves_a_stream_when_his_time_is_up_was_late_and_did_not_just_leave(
    server: Overloaded, wait: float, code: str
) -> None:
    call: Any = Call("", "", SimpleNamespace(time_remaining=lambda: None))  # type: ignore[arg-type]
    request = in_time(0.3)
    server.scheduler._queue.throughput.seconds_per_token = 0.0
    asked = asyncio.create_task(
        server.service.answer_stream_request(call, request, Ticket(WeightedSemaphore(2**20), None))
    )
    await server.waits(1)
    await asyncio.sleep(wait)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert server.codes == [code]


async def test_time_on_the_way_is_time_that_a_request_has_had(server: Overloaded) -> None:
    call: Any = Call("", "", None)  # type: ignore[arg-type]
    answer = await server.service.answer_stream_request(
        call, in_time(1.0), Ticket(WeightedSemaphore(2**20), None), waited=1.5
    )
    assert answer.error_message == "the deadline had passed when the request arrived"


async def test_a_full_queue_says_when_there_will_be_room(server: Overloaded) -> None:
    waiting = asyncio.ensure_future(server.ask(7, length=4))
    await server.waits(4)
    before = time.monotonic()
    refused = asyncio.ensure_future(server.ask(8, length=2))
    while not server.codes:
        await asyncio.sleep(0.001)
    server.gate.set()  # from now on there is room
    await refused
    # 5 tokens are here, and half of those that wait must go first. Its policy alone would ask again in a millisecond.
    assert time.monotonic() - before >= 5 * PACE / 2
    await waiting
    assert server.codes.count("RESOURCE_EXHAUSTED") == 1
    assert server.computed == [5, 7, 8]


async def test_the_time_travels_as_trailing_metadata_and_a_client_gives_up_after_its_attempts(
    server: Overloaded,
) -> None:
    waiting = asyncio.ensure_future(server.ask(7, length=4))
    await server.waits(4)
    with pytest.raises(grpc.aio.AioRpcError, match="the queue is full: 4 of 4 tokens wait, 1 more do not fit") as told:
        await server.ask(8)
    assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1000 * 5 * PACE / 4 <= pushback_of(told.value) <= 1000 * 5 * PACE / 4 * SPREAD + 1
    assert server.codes == ["RESOURCE_EXHAUSTED"] * 3
    server.gate.set()
    await waiting


async def test_who_cannot_be_answered_in_time_is_not_to_try_again(server: Overloaded) -> None:
    server.scheduler._queue.throughput.seconds_per_token = 1000.0
    with pytest.raises(grpc.aio.AioRpcError, match="too much is waiting") as told:
        await server.ask(8, timeout=30)
    assert pushback_of(told.value) == NEVER
    assert server.codes == ["RESOURCE_EXHAUSTED"]  # though the policy would have tried three times


async def test_an_answer_on_a_stream_says_the_same(server: Overloaded) -> None:
    waiting = asyncio.ensure_future(server.ask(7, length=4))
    await server.waits(4)
    late, full = ids_request([[8]]), ids_request([[8]])
    late.parameters["timeout"].int64_param = 100_000
    answers = [answer async for answer in server.stub.ModelStreamInfer(iter([late, full, ids_request([[]])]))]
    told = [answer.infer_response.parameters for answer in answers]
    assert [one["status"].string_param for one in told[:2]] == ["RESOURCE_EXHAUSTED"] * 2
    assert told[0]["retry_after_ms"].int64_param == NEVER
    assert told[1]["retry_after_ms"].int64_param >= 1000 * 5 * PACE / 4
    assert told[2]["status"].string_param == "INVALID_ARGUMENT"
    assert "retry_after_ms" not in told[2]
    server.gate.set()
    await waiting


async def test_the_parameter_priority_decides_who_goes_first(server: Overloaded) -> None:
    waiting = []
    for tokens, (number, parameters) in enumerate([(7, {}), (8, {"priority": 11}), (9, {"priority": 1})], 1):
        waiting.append(asyncio.ensure_future(server.ask(number, **parameters)))
        await server.waits(tokens)
    server.gate.set()
    await asyncio.gather(*waiting)
    assert server.computed == [5, 9, 7, 8]


async def test_an_urgent_request_is_not_refused_for_what_goes_after_it(server: Overloaded) -> None:
    waiting = asyncio.ensure_future(server.ask(7, length=3))
    await server.waits(3)
    server.scheduler._queue.throughput.seconds_per_token = 10.0  # 10 seconds of work are before urgent ones, 40 in all
    with pytest.raises(grpc.aio.AioRpcError, match=r"too much is waiting: 40\.00 s of work"):
        await server.ask(8, timeout=30)
    urgent = asyncio.ensure_future(server.ask(9, timeout=30, priority=1))
    await server.waits(4)
    server.gate.set()
    await asyncio.gather(waiting, urgent)


@pytest.mark.parametrize("value", [{"string_param": "high"}, {"int64_param": -1}, {"double_param": 1.0}])
async def test_a_priority_that_is_none_is_refused(server: Overloaded, value: dict[str, Any]) -> None:
    request = ids_request([[5]])
    request.parameters["priority"].CopyFrom(pb.InferParameter(**value))
    with pytest.raises(grpc.aio.AioRpcError, match="parameter priority must be an integer from 0 on"):
        await server.stub.ModelInfer(request)


def test_only_who_knows_says_when() -> None:
    assert retry_after_ms(Unavailable("loading")) is None
    assert retry_after_ms(Exhausted("too many calls on this connection")) is None
    assert retry_after_ms(Exhausted("", math.inf)) == NEVER
    told = [retry_after_ms(Exhausted("", 2.0)) or 0 for _ in range(100)]
    assert 2000 <= min(told) < max(told) <= 2000 * SPREAD + 1


@pytest.mark.parametrize(("wait", "left"), [(0.8, 1.0), (0.99, 1.0), (5.0, 6.0)])
def test_another_try_after_the_time_that_is_told_would_be_taken(wait: float, left: float) -> None:
    seconds = _retry_after(wait, left)
    assert wait > ADMITTED_SHARE * left
    assert wait - seconds == pytest.approx(ADMITTED_SHARE * (left - seconds))


def test_no_time_is_told_if_it_would_be_after_the_deadline() -> None:
    assert _retry_after(1.0, 1.0) == math.inf
    assert _retry_after(5.0, 0.1) == math.inf
