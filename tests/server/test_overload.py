"""What callers hear over gRPC when more is ask than can be done: whether, and when, another try is worth it."""

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

from heed.bundle.packing import TokenSequence
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub, add_GRPCInferenceServiceServicer_to_server
from heed.server.engine.graphs import Answer
from heed.server.engine.model import Model
from heed.server.errors import Exhausted, Unavailable
from heed.server.protocols.open_inference.service import InferenceService
from heed.server.protocols.streams import Ticket, WeightedSemaphore
from heed.server.repository.attentions import Attentions
from heed.server.repository.model_repository import ModelRepository
from heed.server.repository.registry import ModelRegistry, ModelVersion, State
from heed.server.repository.served_model import ServedModel
from heed.server.scheduling.batching import OneByOne
from heed.server.scheduling.scheduler import SAFE, Scheduler, _retry_after
from heed.server.scheduling.workers import Workers
from heed.server.settings import Settings
from heed.server.telemetry.metrics import Metrics
from heed.server.telemetry.request_trace import Call, Observers, RequestTrace
from heed.server.telemetry.statistics import Statistics
from heed.server.transport.interceptors import ConcurrencyLimit
from heed.server.transport.status import NEVER, PUSHBACK, SPREAD, retry_after_ms
from tests.server.support import ids_request

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


class TextEndpoint:
    """A server with room for four tokens, whose one thread is held back by a request of one token."""

    def __init__(self, bundle: Path) -> None:
        self._model = Model(bundle, "cpu")
        self.gate = threading.Event()
        self.computed: list[int] = []  # the first id of each row
        self.codes: list[str] = []  # of every attempt
        self._workers = Workers(1)
        self.scheduler = Scheduler(self._run, OneByOne(), self._workers, max_tokens=4)
        self.stub: Any = None
        self.slots = ConcurrencyLimit(1000, lambda _: None)

    def _run(self, group: Sequence[TokenSequence], outputs: frozenset[str], alone: bool) -> list[Answer]:
        self.computed.append(int(group[0].tokens["input_ids"][0]))
        assert self.gate.wait(PATIENCE)
        return self._model.run(group, outputs)

    def _ended(self, record: RequestTrace) -> None:
        self.codes.append(record.code)

    def ask(self, first: int, length: int = 1, timeout: float | None = None, **parameters: int) -> Any:
        request = ids_request([[first, *[6] * (length - 1)]])
        for name, value in parameters.items():
            request.parameters[name].uint64_param = value
        return self.stub.ModelInfer(request, timeout=timeout)

    async def waits(self, tokens: int) -> None:
        while self.scheduler.waiting_tokens != tokens:
            await asyncio.sleep(0.001)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["TextEndpoint"]:
        registry = ModelRegistry()
        statistics = Statistics()
        serving = ServedModel(self._model, self.scheduler, Attentions(self._model, 1000, statistics), statistics)
        registry.add(ModelVersion(self._model.manifest, state=State.READY, serving=serving))
        server = grpc.aio.server()
        repository = ModelRepository(Settings(bundle=self._model.folder), registry, Metrics())
        self.service = InferenceService(registry, repository, 2**20, Observers(self._ended), self.slots)
        add_GRPCInferenceServiceServicer_to_server(self.service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        options = [("grpc.service_config", json.dumps(RETRYING))]
        async with asyncio.timeout(PATIENCE), grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            self.stub = GRPCInferenceServiceStub(channel)
            held = asyncio.ensure_future(self.ask(5))
            while not self.computed:
                await asyncio.sleep(0.001)
            self.scheduler._lane.pace.seconds_per_token = PACE
            try:
                yield self
            finally:
                self.gate.set()
            await held
        await server.stop(None)
        await serving.close()
        self._workers.close()


@pytest.fixture
async def door(tiny_bundle: Path) -> AsyncIterator[TextEndpoint]:
    async with TextEndpoint(tiny_bundle).open() as door:
        yield door


def pushback_of(error: grpc.aio.AioRpcError) -> int:
    return int(str(dict(error.trailing_metadata())[PUSHBACK]))


async def test_who_does_not_take_his_answers_takes_no_slot_from_others(door: TextEndpoint) -> None:
    room = WeightedSemaphore(1)
    before = Ticket(room, None)
    await before.admit(1)
    call: Any = Call("", "", None)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        waits = group.create_task(door.service.answer_stream_request(call, ids_request([[5]]), Ticket(room, before)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waits.done()
        assert door.slots._taken == 0
        before.leave()
        for _ in range(20):
            await asyncio.sleep(0)
        assert door.slots._taken == 1
        door.gate.set()
    assert not waits.result().error_message
    assert door.slots._taken == 0


def in_time(seconds: float) -> pb.ModelInferRequest:
    request = ids_request([[5]])
    request.id = "7"
    request.parameters["timeout"].int64_param = int(seconds * 1e6)
    return request


@pytest.mark.parametrize(("seconds", "waited", "refused"), [(1.0, 0.7, False), (1.0, 0.8, True), (8.0, 0.8, False)])
async def test_who_had_waited_for_most_of_his_time_when_he_was_read_is_refused(
    door: TextEndpoint, seconds: float, waited: float, refused: bool
) -> None:
    call: Any = Call("", "", None)  # type: ignore[arg-type]
    answer = door.service.refuse_late_request(call, in_time(seconds), waited)
    assert (answer is not None) == refused
    assert door.codes == ["RESOURCE_EXHAUSTED"] * refused
    assert door.service.refuse_late_request(call, ids_request([[5]]), waited) is None  # nobody said how long he waits
    if answer:
        assert "the request had waited 0.80 s of 1.00 s when it was read" in answer.error_message
        assert answer.infer_response.id == "7"
        said = answer.infer_response.parameters
        assert (said["status"].string_param, said["retry_after_ms"].int64_param) == ("RESOURCE_EXHAUSTED", NEVER)


@pytest.mark.parametrize(("wait", "code"), [(0.0, "CANCELLED"), (0.3, "DEADLINE_EXCEEDED")])
async def test_who_leaves_a_stream_when_his_time_is_up_was_late_and_did_not_just_leave(
    door: TextEndpoint, wait: float, code: str
) -> None:
    call: Any = Call("", "", SimpleNamespace(time_remaining=lambda: None))  # type: ignore[arg-type]
    request = in_time(0.3)
    door.scheduler._lane.pace.seconds_per_token = 0.0
    ask = asyncio.create_task(door.service.answer_stream_request(call, request, Ticket(WeightedSemaphore(2**20), None)))
    await door.waits(1)
    await asyncio.sleep(wait)
    ask.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ask
    assert door.codes == [code]


async def test_time_on_the_way_is_time_that_a_request_has_had(door: TextEndpoint) -> None:
    call: Any = Call("", "", None)  # type: ignore[arg-type]
    answer = await door.service.answer_stream_request(
        call, in_time(1.0), Ticket(WeightedSemaphore(2**20), None), waited=1.5
    )
    assert answer.error_message == "the deadline had passed when the request arrived"


async def test_a_full_queue_says_when_there_will_be_room(door: TextEndpoint) -> None:
    waiting = asyncio.ensure_future(door.ask(7, length=4))
    await door.waits(4)
    before = time.monotonic()
    refused = asyncio.ensure_future(door.ask(8, length=2))
    while not door.codes:
        await asyncio.sleep(0.001)
    door.gate.set()  # from now on there is room
    await refused
    # 5 tokens are here, and half of those that wait must go first. Its policy alone would ask again in a millisecond.
    assert time.monotonic() - before >= 5 * PACE / 2
    await waiting
    assert door.codes.count("RESOURCE_EXHAUSTED") == 1
    assert door.computed == [5, 7, 8]


async def test_the_time_travels_as_trailing_metadata_and_a_client_gives_up_after_its_attempts(
    door: TextEndpoint,
) -> None:
    waiting = asyncio.ensure_future(door.ask(7, length=4))
    await door.waits(4)
    with pytest.raises(grpc.aio.AioRpcError, match="the queue is full: 4 of 4 tokens wait, 1 more do not fit") as told:
        await door.ask(8)
    assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1000 * 5 * PACE / 4 <= pushback_of(told.value) <= 1000 * 5 * PACE / 4 * SPREAD + 1
    assert door.codes == ["RESOURCE_EXHAUSTED"] * 3
    door.gate.set()
    await waiting


async def test_who_cannot_be_answered_in_time_is_not_to_try_again(door: TextEndpoint) -> None:
    door.scheduler._lane.pace.seconds_per_token = 1000.0
    with pytest.raises(grpc.aio.AioRpcError, match="too much is waiting") as told:
        await door.ask(8, timeout=30)
    assert pushback_of(told.value) == NEVER
    assert door.codes == ["RESOURCE_EXHAUSTED"]  # though the policy would have tried three times


async def test_an_answer_on_a_stream_says_the_same(door: TextEndpoint) -> None:
    waiting = asyncio.ensure_future(door.ask(7, length=4))
    await door.waits(4)
    late, full = ids_request([[8]]), ids_request([[8]])
    late.parameters["timeout"].int64_param = 100_000
    answers = [answer async for answer in door.stub.ModelStreamInfer(iter([late, full, ids_request([[]])]))]
    told = [answer.infer_response.parameters for answer in answers]
    assert [one["status"].string_param for one in told[:2]] == ["RESOURCE_EXHAUSTED"] * 2
    assert told[0]["retry_after_ms"].int64_param == NEVER
    assert told[1]["retry_after_ms"].int64_param >= 1000 * 5 * PACE / 4
    assert told[2]["status"].string_param == "INVALID_ARGUMENT"
    assert "retry_after_ms" not in told[2]
    door.gate.set()
    await waiting


async def test_the_parameter_priority_decides_who_goes_first(door: TextEndpoint) -> None:
    waiting = []
    for tokens, (number, parameters) in enumerate([(7, {}), (8, {"priority": 11}), (9, {"priority": 1})], 1):
        waiting.append(asyncio.ensure_future(door.ask(number, **parameters)))
        await door.waits(tokens)
    door.gate.set()
    await asyncio.gather(*waiting)
    assert door.computed == [5, 9, 7, 8]


async def test_an_urgent_request_is_not_refused_for_what_goes_after_it(door: TextEndpoint) -> None:
    waiting = asyncio.ensure_future(door.ask(7, length=3))
    await door.waits(3)
    door.scheduler._lane.pace.seconds_per_token = 10.0  # 10 seconds of work are before urgent ones, 40 in all
    with pytest.raises(grpc.aio.AioRpcError, match=r"too much is waiting: 40\.00 s of work"):
        await door.ask(8, timeout=30)
    urgent = asyncio.ensure_future(door.ask(9, timeout=30, priority=1))
    await door.waits(4)
    door.gate.set()
    await asyncio.gather(waiting, urgent)


@pytest.mark.parametrize("value", [{"string_param": "high"}, {"int64_param": -1}, {"double_param": 1.0}])
async def test_a_priority_that_is_none_is_refused(door: TextEndpoint, value: dict[str, Any]) -> None:
    request = ids_request([[5]])
    request.parameters["priority"].CopyFrom(pb.InferParameter(**value))
    with pytest.raises(grpc.aio.AioRpcError, match="parameter priority must be an integer from 0 on"):
        await door.stub.ModelInfer(request)


def test_only_who_knows_says_when() -> None:
    assert retry_after_ms(Unavailable("loading")) is None
    assert retry_after_ms(Exhausted("too many calls on this connection")) is None
    assert retry_after_ms(Exhausted("", math.inf)) == NEVER
    told = [retry_after_ms(Exhausted("", 2.0)) or 0 for _ in range(100)]
    assert 2000 <= min(told) < max(told) <= 2000 * SPREAD + 1


@pytest.mark.parametrize(("wait", "left"), [(0.8, 1.0), (0.99, 1.0), (5.0, 6.0)])
def test_another_try_after_the_time_that_is_told_would_be_taken(wait: float, left: float) -> None:
    seconds = _retry_after(wait, left)
    assert wait > SAFE * left
    assert wait - seconds == pytest.approx(SAFE * (left - seconds))


def test_no_time_is_told_if_it_would_be_after_the_deadline() -> None:
    assert _retry_after(1.0, 1.0) == math.inf
    assert _retry_after(5.0, 0.1) == math.inf
