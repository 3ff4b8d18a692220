"""What a request says beside its values is remembered, and never what was wrong or is another's."""

from collections.abc import Callable

import numpy as np
import pytest

from heed.bundle.sequence_packing import Arrays
from heed.client.wire import infer_request
from heed.protos import open_inference_pb2 as pb
from heed.server.errors import InvalidArgument
from heed.server.protocols.open_inference import headers as module
from heed.server.protocols.open_inference.headers import HeaderCache, RequestHeader
from heed.server.requests.preprocess import Preprocessor
from tests.server.support import ids_request, manifest_of

MODEL = manifest_of("input_ids", "attention_mask", outputs=["last_hidden_state", "logits"])


def asked(*ids: int, outputs: tuple[str, ...] = ("logits",), id: str = "", **parameters: int) -> pb.ModelInferRequest:
    inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    request = infer_request("tiny", "", inputs, outputs, truncate=True)
    request.id = id
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


def read(headers: HeaderCache, request: pb.ModelInferRequest) -> tuple[RequestHeader, Arrays]:
    header, raws = headers.split(request)
    return header, header.read(request, raws)


def test_requests_that_differ_in_values_and_ids_alone_share_a_header() -> None:
    headers = HeaderCache(MODEL, Preprocessor(MODEL))
    first, first_inputs = read(headers, asked(5, 6, 7, id="a"))
    second, second_inputs = read(headers, asked(7, 8, 9, id="b"))
    assert first is second
    assert first_inputs["input_ids"].tolist() == [[5, 6, 7]]
    assert second_inputs["input_ids"].tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    "other",
    [
        lambda: asked(5, 6),
        lambda: asked(5, 6, 7, outputs=("last_hidden_state",)),
        lambda: asked(5, 6, 7, outputs=("last_hidden_state", "logits")),
        lambda: asked(5, 6, 7, priority=2),
        lambda: asked(5, 6, 7, timeout=10**6),
        lambda: ids_request([[5, 6, 7]], [[1, 1, 1]]),
    ],
)
def test_a_request_that_says_something_else_has_a_header_of_its_own(other: Callable[[], pb.ModelInferRequest]) -> None:
    headers = HeaderCache(MODEL, Preprocessor(MODEL))
    first, _ = read(headers, asked(5, 6, 7))
    second, _ = read(headers, other())
    fresh, _ = read(HeaderCache(MODEL, Preprocessor(MODEL)), other())
    assert second == fresh != first


def test_a_request_keeps_its_id() -> None:
    headers = HeaderCache(MODEL, Preprocessor(MODEL))
    for id in ("a", "b"):
        request = asked(5, id=id)
        read(headers, request)
        assert request.id == id


def test_values_are_checked_under_a_header_that_is_known() -> None:
    headers = HeaderCache(MODEL, Preprocessor(MODEL))
    read(headers, asked(5, 6, 7))
    short = asked(5, 6, 7)
    short.raw_input_contents[1] = short.raw_input_contents[1][:-8]
    with pytest.raises(InvalidArgument, match=r"attention_mask has shape \[1, 3\], which is 3 values, but 2 came"):
        read(headers, short)
    fewer = asked(5, 6, 7)
    del fewer.raw_input_contents[1]
    with pytest.raises(InvalidArgument, match="2 inputs came with 1 raw_input_contents"):
        read(headers, fewer)
    both = asked(5, 6, 7)
    both.inputs[0].contents.int64_contents.extend([5, 6, 7])
    with pytest.raises(InvalidArgument, match="came together with contents"):
        read(headers, both)


def test_what_is_wrong_is_said_to_everyone_who_asks_for_it() -> None:
    headers = HeaderCache(MODEL, Preprocessor(MODEL))
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="output labels is unknown"):
            read(headers, asked(5, outputs=("labels",)))


def test_only_so_many_are_remembered_and_none_that_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", 2)
    headers = HeaderCache(MODEL, Preprocessor(MODEL))
    first, _ = read(headers, asked(5))
    for length in (2, 3):
        read(headers, asked(*range(length)))
    assert read(headers, asked(5))[0] is not first
    large = [read(headers, asked(5, outputs=("logits",), id="", timeout=10**6)) for _ in range(2)]
    assert large[0][0] is large[1][0]
    monkeypatch.setattr(module, "LONGEST_CACHED", 10)
    assert read(headers, asked(5))[0] is not read(headers, asked(5))[0]
