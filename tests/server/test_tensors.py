"""Tensors on the wire that no other test sends."""

import numpy as np
import pytest

from client.wire import read_answer
from protos import open_inference_pb2 as pb
from server.errors import InvalidArgument
from server.requests import check_request
from server.services.tensors import OVERHEAD, check_response_size, decode_inputs, encode_outputs, response_bytes
from tests.server.support import manifest_of

MODEL = manifest_of(
    "features", "adjacency", outputs=["last_hidden_state", "logits", "labels", "attentions"], aligned=True
)
INPUTS = {"features": np.zeros((2, 5, 2), np.float32), "adjacency": np.ones((2, 5, 5), np.bool_)}


def test_any_byte_but_0_is_true() -> None:
    request = pb.ModelInferRequest(raw_input_contents=[bytes([0, 1, 2, 255])])
    request.inputs.add(name="adjacency", datatype="BOOL", shape=[1, 2, 2])
    decoded = decode_inputs(MODEL, request)["adjacency"]
    assert decoded.dtype == np.bool_
    assert decoded.view(np.uint8).tolist() == [[[0, 1], [1, 1]]]


def test_what_is_encoded_is_what_the_client_reads() -> None:
    arrays = {
        "logits": np.array([[0.5, -1.25]], np.float32),
        "labels": np.array([["早上", "", "a"]]),
        "offsets": np.array([[[0, 2**40]]]),
    }
    response = pb.ModelInferResponse()
    encode_outputs(response, arrays)
    assert [output.datatype for output in response.outputs] == ["FP32", "BYTES", "INT64"]
    answer = read_answer(response)
    for name, array in arrays.items():
        assert answer[name].tolist() == array.tolist()


def test_the_size_of_an_answer_is_known_beforehand() -> None:
    """2 rows of 5 tokens: 4 values and 3 logits each, and 2 layers of 3 heads of 5 x 5 weights; 4 bytes each."""
    sizes = {"last_hidden_state": 160, "logits": 120, "labels": 0, "attentions": 1200}
    for name, size in sizes.items():
        request = check_request(MODEL, None, INPUTS, [name])
        assert response_bytes(MODEL, request) == size
    request = check_request(MODEL, None, INPUTS, list(sizes))
    assert response_bytes(MODEL, request) == 1480
    check_response_size(MODEL, request, 1480 + OVERHEAD)
    with pytest.raises(InvalidArgument, match=rf"would have 1480 bytes, more than a message holds here \({OVERHEAD}\)"):
        check_response_size(MODEL, request, OVERHEAD)
