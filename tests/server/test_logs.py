"""What is logged of requests, and what callers cannot do to the log."""

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from heed.protos import open_inference_pb2 as pb
from heed.protos import tei_pb2
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.protos.tei_pb2_grpc import EmbedStub
from heed.server.errors import Exhausted
from heed.server.telemetry import logs
from heed.server.telemetry.logs import JsonFormatter, RequestLog, TextFormatter, configure
from heed.server.telemetry.request_trace import Call, Observers
from heed.server.transport.status import describe
from tests.server.support import text_request
from tests.support import Running, run_server

SECRET = "xylophone"  # nowhere in the log
EVIL = "a\n2026-01-01 00:00:00,000 INFO heed.requests request id=forged\r\x1b[2K\u2028\u202e"


@contextmanager
def logged(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """What the loggers of heed write with this formatter."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("heed")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class Context:
    """As much of a call as the log looks at."""

    def peer(self) -> str:
        return "ipv6:%5B::1%5D:50000"

    def time_remaining(self) -> None:
        return None


def call() -> Call:
    context: Any = Context()
    return Call("inference.GRPCInferenceService", "ModelInfer", context)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("order-1", True),
        ("Bestellung Nr. 7 = ü", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        (EVIL, False),
        ("\u202eright to left", False),
    ],
)
def test_a_callers_id_is_kept_if_it_is_one(given: str, kept: bool) -> None:
    with logged(JsonFormatter()) as stream, Observers(RequestLog(logging.INFO).request_ended).trace(call(), given):
        pass
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)["id"]
    assert (found == given) if kept else re.fullmatch("[0-9a-f]{32}", found)


def test_fields_of_a_text_line_cannot_be_forged() -> None:
    with logged(TextFormatter()) as stream:
        for given in ("a code=OK", 'a" code="OK', "a\\", "ü"):
            with Observers(RequestLog(logging.INFO).request_ended).trace(call(), given):
                pass
    words = r'(?:[^\s"=\\]+|"(?:[^"\\]|\\.)*")'
    for line, given in zip(stream.getvalue().splitlines(), ("a code=OK", 'a" code="OK', "a\\", "ü"), strict=True):
        fields = re.fullmatch(rf"\S+ \S+ INFO heed.requests request((?: \w+={words})+)", line)
        assert fields, line
        (id,) = re.findall(rf" id=({words})", fields[1])
        assert json.loads(id) == given
        assert "peer=[::1]:50000" in line


def test_nothing_that_callers_send_begins_a_line() -> None:
    def wrong() -> None:
        raise ValueError(EVIL)

    for formatter in (TextFormatter(), JsonFormatter()):
        with logged(formatter) as stream:
            logging.getLogger("heed.test").warning("said: %s", EVIL)
            try:
                wrong()
            except ValueError:
                logging.getLogger("heed.test").exception("what is this?")
        said = stream.getvalue()
        assert said.isascii()
        assert not {"\r", "\x1b"} & set(said)
        beginnings = [line for line in said.split("\n") if line and not line.startswith("    ")]
        assert len(beginnings) == 2
        assert "ValueError" in said
        if isinstance(formatter, JsonFormatter):
            first, second = map(json.loads, beginnings)
            assert first["message"] == f"said: {EVIL}"
            assert EVIL in second["exception"]


def test_an_internal_error_has_one_reference_in_status_and_log() -> None:
    error = KeyError("nobody foresaw this")
    with logged(JsonFormatter()) as stream:
        with pytest.raises(KeyError), Observers(RequestLog(logging.INFO).request_ended).trace(call()):
            raise error
        code, message = describe(error)
    request, internal = map(json.loads, stream.getvalue().splitlines())
    assert code is grpc.StatusCode.INTERNAL
    assert request["reference"] in message
    assert request["reference"] in internal["message"]
    assert "nobody foresaw this" in internal["exception"]
    assert (request["code"], request["reason"]) == ("INTERNAL", "internal")


def test_a_refusal_is_logged_with_its_reason_and_without_its_message() -> None:
    with (
        logged(JsonFormatter()) as stream,
        pytest.raises(Exhausted),
        Observers(RequestLog(logging.INFO).request_ended).trace(call()),
    ):
        raise Exhausted(f"no room for {SECRET}", reason="queue_full")
    request = json.loads(stream.getvalue())
    assert (request["code"], request["reason"]) == ("RESOURCE_EXHAUSTED", "queue_full")
    assert "reference" not in request
    assert SECRET not in stream.getvalue()


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    """Puts the process's own logging back."""
    root, heed = logging.getLogger(), logging.getLogger("heed")
    handlers, levels = root.handlers[:], (root.level, heed.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    heed.setLevel(levels[1])


@pytest.mark.usefixtures("_as_it_was")
def test_levels_are_those_of_heed(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "debug")
    logging.getLogger("heed.x").debug("ours")
    logging.getLogger("other").debug("another's")
    configure("text", "warning")
    logging.getLogger("heed.x").info("too little")
    logging.getLogger("other").info("another's to say")
    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first)["message"] == "ours"
    assert second.endswith("INFO other another's to say")
    assert not logs.log.isEnabledFor(logging.INFO)


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    flags = ("--log-format", "json", "--log-requests", "--recheck-seconds", "0")
    with run_server(tiny_bundle, tmp_path_factory.mktemp("logs") / "log", *flags) as running:
        yield running


def test_a_server_logs_requests_of_both_doors_without_what_they_contain(server: Running) -> None:
    request = text_request(SECRET, f"{SECRET} {SECRET}")
    request.id = "order-1"
    wrong = pb.ModelInferRequest()
    wrong.CopyFrom(request)
    wrong.inputs[0].name = SECRET
    wrong.id = EVIL
    with grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request, timeout=60)
        list(stub.ModelStreamInfer(iter([wrong]), timeout=60))
        EmbedStub(channel).Embed(tei_pb2.EmbedRequest(inputs=SECRET), timeout=60)
    text = server.log.read_text()
    assert SECRET not in text
    entries = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    requests = [entry for entry in entries if entry["logger"] == "heed.requests"]
    assert [(one["method"], one["code"]) for one in requests] == [
        ("ModelInfer", "OK"),
        ("ModelStreamInfer", "INVALID_ARGUMENT"),
        ("Embed", "OK"),
    ]
    first = requests[0]
    assert (first["id"], first["model"], first["version"], first["rows"]) == ("order-1", "tiny", "1", 2)
    assert first["tokens"] > 2
    stages = sum(first[f"{stage}_ms"] for stage in ("prepare", "queue", "compute", "encode"))
    assert stages == pytest.approx(first["ms"], abs=0.01)
    assert first["peer"].startswith("127.0.0.1:")


def test_requests_are_not_logged_unless_that_is_wanted(tiny_server: Running) -> None:
    with grpc.insecure_channel(tiny_server.address) as channel:
        GRPCInferenceServiceStub(channel).ModelInfer(text_request("a"), timeout=60)
    assert "heed.requests" not in tiny_server.log.read_text()
