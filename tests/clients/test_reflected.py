"""Clients made on the spot from what the server says of itself, and probes of its health."""

import base64
from typing import Any

import numpy as np
import pytest

from heed.client import Client
from heed.protos.open_inference_pb2 import DESCRIPTOR
from tests.clients.support import heard_by
from tests.support import Running

OIP = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def heard(server: Running) -> Any:
    return heard_by("reflected", server.address)


@pytest.fixture(scope="module")
def vector(server: Running) -> bytes:
    """Of "a dog", by heed's own client."""
    with Client(server.address, "tiny") as client:
        answer: np.ndarray = client.infer({"text": ["a dog"]}, ["sentence_embedding"])["sentence_embedding"]
        return answer.tobytes()


def test_services_and_methods_are_told(heard: Any) -> None:
    assert {OIP, "grpc.health.v1.Health"} <= set(heard["services"])
    assert heard["methods"] == [method.name for method in DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]


def test_an_answer_has_the_bits_of_the_generated_client(heard: Any, vector: bytes) -> None:
    answer = heard["infer"]
    assert (answer["id"], answer["model_version"]) == ("a dog", "1")
    assert answer["outputs"] == [{"name": "sentence_embedding", "datatype": "FP32", "shape": ["1", "32"]}]
    assert [base64.b64decode(raw) for raw in answer["raw_output_contents"]] == [vector]


def test_a_stream_goes_on_after_an_error(heard: Any, vector: bytes) -> None:
    first, error, last = heard["stream"]
    assert first["infer_response"]["id"] == "i"
    assert "model 'nobody' is not served here" in error["error_message"]
    assert error["infer_response"]["parameters"]["status"] == {"string_param": "NOT_FOUND"}
    assert base64.b64decode(last["infer_response"]["raw_output_contents"][0]) == vector


def test_the_extensions_answer(heard: Any) -> None:
    (pixels,) = heard["config"]["config"]["input"]
    assert pixels == {"name": "pixel_values", "data_type": "TYPE_FP32", "dims": ["-1", "3", "8", "8"]}
    (seen,) = heard["statistics"]["model_stats"]
    assert int(seen["inference_count"]) >= 3
    assert [(one["name"], one["state"]) for one in heard["index"]["models"]] == [("seen", "READY"), ("tiny", "READY")]
    assert heard["elsewhere"] == {
        "status": "NOT_FOUND",
        "message": "there is no repository 'mine'; there is one only, leave repository_name empty",
    }


def test_health_of_the_server_and_of_its_service(heard: Any) -> None:
    for probe in ("check", "watch"):
        assert heard[probe][""] == heard[probe][OIP] == {"status": "SERVING"}
    assert heard["check"]["nobody"]["status"] == "NOT_FOUND"
    assert heard["watch"]["nobody"] == {"status": "SERVICE_UNKNOWN"}  # it may come to be, says the protocol
