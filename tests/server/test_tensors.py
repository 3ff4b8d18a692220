"""Tensors on the wire that no other test sends."""

from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16, finfo

from heed.client.wire import read_answer
from heed.protos import open_inference_pb2 as pb
from heed.server.errors import InvalidArgument
from heed.server.protocols.open_inference.tensors import OVERHEAD, check_response_size, encode_outputs, response_bytes
from heed.server.requests.preprocess import Preprocessor
from tests.server.support import decoded_inputs, manifest_of

MODEL = manifest_of(
    "features", "adjacency", outputs=["last_hidden_state", "logits", "labels", "attentions"], aligned=True
)
INPUTS = {"features": np.zeros((2, 5, 2), np.float32), "adjacency": np.ones((2, 5, 5), np.bool_)}


def test_any_byte_but_0_is_true() -> None:
    request = pb.ModelInferRequest(raw_input_contents=[bytes([0, 1, 2, 255])])
    request.inputs.add(name="adjacency", datatype="BOOL", shape=[1, 2, 2])
    decoded = decoded_inputs(MODEL, request)["adjacency"]
    assert decoded.dtype == np.bool_
    assert decoded.view(np.uint8).tolist() == [[[0, 1], [1, 1]]]


TAKEN = {
    "input_ids": ["INT64", "INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8", "BOOL"],
    "features": ["FP32", "FP16", "BF16"],
    "adjacency": ["BOOL"],
}
NUMPY = {"BOOL": np.bool_, "FP16": np.float16, "BF16": bfloat16, "FP32": np.float32, "FP64": np.float64}
FIELDS = {"BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents"}
ALL = ["BOOL", *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)), "FP16", "BF16", "FP32", "FP64"]


def extremes(datatype: str) -> np.ndarray:
    """The numbers that are hardest to hold."""
    dtype = NUMPY.get(datatype) or np.dtype(datatype.lower())
    if datatype == "BOOL":
        return np.array([False, True, True, False])
    if "INT" in datatype:
        limits = np.iinfo(dtype)
        return np.array([limits.min, 0, 1, limits.max], dtype)
    floats: Any = finfo(dtype)  # type: ignore[no-untyped-call]
    return np.array([floats.max, floats.smallest_subnormal, -1 / 3, -0.0], dtype)


def one_input(name: str, datatype: str, shape: list[int]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest()
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("datatype", ALL)
def test_what_the_model_holds_exactly_is_taken_and_nothing_else(name: str, datatype: str) -> None:
    values = extremes(datatype)
    shape = {"input_ids": [1, 4], "features": [1, 2, 2], "adjacency": [1, 2, 2]}[name]
    raw, typed = one_input(name, datatype, shape), one_input(name, datatype, shape)
    raw.raw_input_contents.append(values.tobytes())
    model = manifest_of("input_ids", "features", "adjacency")
    if datatype not in TAKEN[name]:
        with pytest.raises(InvalidArgument, match=rf"input {name} must be {TAKEN[name][0]}.*, got {datatype}"):
            decoded_inputs(model, raw)
        return
    decoded = decoded_inputs(model, raw)[name]
    assert decoded.dtype == {"input_ids": np.int64, "features": np.float32, "adjacency": np.bool_}[name]
    assert [each.item() for each in decoded.flat] == [each.item() for each in values]
    field = FIELDS.get(datatype, "uint_contents" if datatype[0] == "U" else "int_contents")
    if datatype in ("FP16", "BF16"):
        typed.inputs[0].contents.fp32_contents.extend(values.astype(float))
        with pytest.raises(InvalidArgument, match=f"{datatype}, which has no field in contents; send raw"):
            decoded_inputs(model, typed)
        return
    getattr(typed.inputs[0].contents, field).extend(values.tolist())
    assert decoded_inputs(model, typed)[name].tobytes() == decoded.tobytes()


def test_a_typed_value_that_its_datatype_does_not_hold_is_refused() -> None:
    request = one_input("input_ids", "UINT8", [1, 2])
    request.inputs[0].contents.uint_contents.extend([1, 256])
    with pytest.raises(InvalidArgument, match="input input_ids has values in uint_contents that are no UINT8"):
        decoded_inputs(manifest_of("input_ids"), request)


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
        request = Preprocessor(MODEL).preprocess(INPUTS, [name])
        assert response_bytes(MODEL, request) == size
    request = Preprocessor(MODEL).preprocess(INPUTS, list(sizes))
    assert response_bytes(MODEL, request) == 1480
    check_response_size(MODEL, request, 1480 + OVERHEAD)
    with pytest.raises(InvalidArgument, match=rf"would have 1480 bytes, more than a message holds here \({OVERHEAD}\)"):
        check_response_size(MODEL, request, OVERHEAD)
