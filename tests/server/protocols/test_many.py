"""heed.v1: many requests on one stream, several to a message."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from heed.protos import heed_pb2 as pb
from heed.protos.heed_pb2_grpc import InferenceStub
from heed.protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.protocols.heed_v1 import MESSAGE_BYTES, ClientStream, OneWayDelay
from heed.server.protocols.streams import REQUEST_BYTES, STREAM_ANSWERS, STREAM_REQUESTS, Ticket
from tests.server.protocols.test_streams import numbered
from tests.server.support import ids_request
from tests.support import Running, start_server, stop, wait_until_serving


@pytest.fixture
def channel(tiny_server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield channel


def test_answers_have_the_ids_of_their_requests_and_the_bits_of_single_calls(channel: grpc.Channel) -> None:
    requests = numbered(300)  # more than are in the server at a time
    messages = [pb.Requests(requests=requests[start : start + 40]) for start in range(0, 300, 40)]
    answers = [answer for message in InferenceStub(channel).InferMany(iter(messages)) for answer in message.answers]
    by_id = {answer.infer_response.id: answer for answer in answers}
    assert len(answers) == 300
    assert by_id.keys() == {request.id for request in requests}
    assert {answer.error_message for answer in answers} == {""}
    for request in requests[::37]:
        alone = GRPCInferenceServiceStub(channel).ModelInfer(request)
        assert by_id[request.id].infer_response.raw_output_contents == alone.raw_output_contents


def test_an_error_is_the_answer_to_its_request_alone(channel: grpc.Channel) -> None:
    requests = numbered(4)
    requests[1].model_name = "big"
    requests[2].inputs[0].name = "smell"
    messages = InferenceStub(channel).InferMany(iter([pb.Requests(requests=requests)]))
    answers = {answer.infer_response.id: answer for message in messages for answer in message.answers}
    said = {id: answer.infer_response.parameters["status"].string_param for id, answer in answers.items()}
    assert said == {"0": "", "1": "NOT_FOUND", "2": "INVALID_ARGUMENT", "3": ""}
    assert "input smell is unknown" in answers["2"].error_message


def test_two_requests_with_one_id_are_refused(channel: grpc.Channel) -> None:
    requests = [ids_request([[5] * 100]), ids_request([[6]])]
    with pytest.raises(grpc.RpcError) as refused:
        list(InferenceStub(channel).InferMany(iter([pb.Requests(requests=requests)])))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "a request came with the id of another that is under way: ''" in str(refused.value.details())


def test_an_open_stream_does_not_hold_up_the_end(tiny_bundle: Path, tmp_path: Path) -> None:
    server = start_server(tiny_bundle, tmp_path / "log", "--linger-seconds", "0", "--grace-seconds", "30")
    wait_until_serving(server)
    ended = threading.Event()

    def messages() -> Iterator[pb.Requests]:
        yield pb.Requests(requests=numbered(1))
        ended.wait(30)

    with grpc.insecure_channel(server.address) as channel:
        answers = InferenceStub(channel).InferMany(messages())
        assert next(answers).answers[0].infer_response.id == "0"
        assert stop(server, seconds=10) == 0
        with pytest.raises(grpc.RpcError) as refused:
            next(answers)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        ended.set()


TOO_LONG = 10.0  # seconds that a request has waited when it is refused


class Service:
    """Answers when told, and takes what is written."""

    def __init__(self, size: int = 0) -> None:
        """`size` of each answer, as far as the bound on them is concerned."""
        self._size = size
        self.begun: dict[str, asyncio.Future[bytes]] = {}
        self.left: list[str] = []
        self.waited: dict[str, float] = {}
        self.written: list[list[str]] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self._messages: asyncio.Queue[pb.Requests | None] = asyncio.Queue()
        self.client = ClientStream(self._answer, self._refuse, self._write)
        self.serving = asyncio.create_task(self.client.stream.serve(self.client.requests(self._read())))

    def send(self, *ids: str, cancelled: tuple[str, ...] = (), padding: int = 0, ago: float | None = None) -> None:
        """`ago`: seconds before now at which it was sent, on a clock that is an hour ahead; not told if left out."""
        requests = [ModelInferRequest(id=id, model_name="x" * padding) for id in ids]
        sent_us = 0 if ago is None else int((time.monotonic() + 3600 - ago) * 1e6)
        self._messages.put_nowait(pb.Requests(requests=requests, cancelled=cancelled, sent_us=sent_us))

    async def end(self) -> None:
        self._messages.put_nowait(None)
        await self.serving

    async def _read(self) -> AsyncIterator[pb.Requests]:
        while (message := await self._messages.get()) is not None:
            yield message

    async def _answer(self, request: ModelInferRequest, place: Ticket, waited: float) -> ModelStreamInferResponse:
        await place.admit(self._size)
        self.waited[request.id] = waited
        self.begun[request.id] = asyncio.get_running_loop().create_future()
        try:
            raw = await self.begun[request.id]
        except asyncio.CancelledError:
            self.left.append(request.id)
            raise
        answer = ModelStreamInferResponse()
        answer.infer_response.id = request.id
        answer.infer_response.raw_output_contents.append(raw)
        return answer

    def _refuse(self, request: ModelInferRequest, waited: float) -> ModelStreamInferResponse | None:
        if waited < TOO_LONG:
            return None
        answer = ModelStreamInferResponse(error_message="late")
        answer.infer_response.id = request.id
        return answer

    async def _write(self, message: pb.Answers) -> None:
        await self.takes.wait()
        self.written.append([answer.infer_response.id for answer in message.answers])


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_go_when_they_are_there_and_together_what_came_meanwhile() -> None:
    service = Service()
    service.send("a", "b", "c", "d")
    await settled()
    service.begun["c"].set_result(b"")
    await settled()
    assert service.written == [["c"]]
    service.takes.clear()
    for id in ("b", "d", "a"):
        service.begun[id].set_result(b"")
        await settled()
    service.takes.set()
    await service.end()
    assert service.written == [["c"], ["b"], ["d", "a"]]


async def test_what_is_too_much_for_one_message_goes_in_several() -> None:
    service = Service()
    service.send("a", "b", "c", "d")
    await settled()
    for id, size in {"a": MESSAGE_BYTES // 2, "b": MESSAGE_BYTES // 3, "c": 2 * MESSAGE_BYTES, "d": 1}.items():
        service.begun[id].set_result(bytes(size))
    await service.end()
    assert service.written == [["a", "b"], ["c"], ["d"]]


async def test_who_is_cancelled_is_not_answered_and_gives_his_room_back() -> None:
    service = Service()
    count = 2 * STREAM_REQUESTS
    for number in range(count):
        service.send(str(number))
        if number % 3:
            await settled()
        service.send(cancelled=(str(number),))  # at work, or before it has begun
    service.send("last", cancelled=("unknown",))
    await settled()
    service.begun["last"].set_result(b"")
    await service.end()
    assert service.written == [["last"]]
    assert len(service.left) > count / 2


@pytest.mark.parametrize(("padding", "most"), [(0, STREAM_REQUESTS), (REQUEST_BYTES, STREAM_REQUESTS // 2)])
async def test_so_many_requests_are_in_the_server_until_answers_are_taken(padding: int, most: int) -> None:
    service = Service()
    service.takes.clear()
    service.send(*map(str, range(2 * STREAM_REQUESTS)), padding=padding)
    for _ in range(20):
        await settled()
    assert len(service.begun) == most
    for reply in service.begun.values():
        reply.set_result(b"")
    for _ in range(20):
        await settled()
    assert len(service.begun) == most
    service.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await service.serving


async def test_answers_that_nobody_takes_are_bounded() -> None:
    service = Service(size=STREAM_ANSWERS // 2)
    service.takes.clear()
    service.send(*"abcd")
    await settled()
    assert "".join(service.begun) == "ab"
    for reply in service.begun.values():
        reply.set_result(b"")
    await settled()
    assert "".join(service.begun) == "ab"  # computed, and not taken
    service.takes.set()
    await settled()
    assert "".join(service.begun) == "abcd"
    for id in "cd":
        service.begun[id].set_result(b"")
    await service.end()
    assert sorted(id for message in service.written for id in message) == list("abcd")


async def test_what_a_message_has_waited_on_its_way_is_by_how_much_later_it_came_than_others() -> None:
    service = Service()
    service.send("untold")
    service.send("first", ago=5.0)
    service.send("quick", ago=0.1)
    service.send("slow", ago=4.1)
    await settled()
    assert service.waited == pytest.approx({"untold": 0.0, "first": 0.0, "quick": 0.0, "slow": 4.0}, abs=0.05)
    for reply in service.begun.values():
        reply.set_result(b"")
    await service.end()


async def test_to_wait_for_room_is_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    service, waited = Service(), 0.0
    monkeypatch.setattr(service.client._delay, "seconds", lambda _: waited)
    service.takes.clear()
    service.send(*map(str, range(STREAM_REQUESTS + 1)))
    for _ in range(20):
        await settled()
    waited = 5.0
    service.takes.set()
    for reply in list(service.begun.values()):
        reply.set_result(b"")
    for _ in range(20):
        await settled()
    last = str(STREAM_REQUESTS)
    assert set(service.waited.items()) == {(str(number), 0.0) for number in range(STREAM_REQUESTS)} | {(last, 5.0)}
    service.begun[last].set_result(b"")
    await service.end()


def test_clocks_that_go_apart_are_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender's clock loses a second in three hours."""
    delay = OneWayDelay()
    for second in range(0, 24 * 3600, 60):
        monkeypatch.setattr(time, "monotonic", lambda now=second: float(now))
        assert delay.seconds(int((1e6 + second * (1 - 1e-4)) * 1e6)) < 0.01
    assert delay.seconds(int((1e6 + (second - 5) * (1 - 1e-4)) * 1e6)) == pytest.approx(5, abs=0.1)


async def test_what_has_waited_too_long_is_refused_before_anything_is_done_for_it() -> None:
    service = Service()
    service.send("quick", ago=0.1)
    late = [f"late {number}" for number in range(3 * STREAM_REQUESTS)]
    for id in late:
        service.send(id, ago=TOO_LONG + 1)
    service.send("last", ago=1.0)
    for _ in range(40):
        await settled()
    assert list(service.begun) == ["quick", "last"]
    assert sorted(id for message in service.written for id in message) == sorted(late)
    for reply in service.begun.values():
        reply.set_result(b"")
    await service.end()
    assert service.written[-1] == ["quick", "last"]


async def test_all_is_cancelled_when_the_caller_goes() -> None:
    service = Service()
    service.send("a", "b")
    await settled()
    service.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await service.serving
    assert sorted(service.left) == ["a", "b"]
