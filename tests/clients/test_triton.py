"""tritonclient.grpc, as it is, against a server of two models."""

from typing import Any

import numpy as np
import pytest

from heed.client import Client
from tests.clients.support import heard_by
from tests.support import Running

IDS = {"input_ids": np.array([[2, 5, 9, 3], [2, 6, 3, 0]]), "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]])}
LABELS = ["red", "green", "blue"]

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def heard(server: Running) -> Facts:
    facts: Facts = heard_by("triton_sync", server.address)
    return facts


@pytest.fixture(scope="module")
def about(heard: Facts) -> Facts:
    facts: Facts = heard["about"]
    return facts


@pytest.fixture(scope="module")
def infer(heard: Facts) -> Facts:
    facts: Facts = heard["infer"]
    return facts


@pytest.fixture(scope="module")
def images(heard: Facts) -> Facts:
    facts: Facts = heard["images"]
    return facts


@pytest.fixture(scope="module")
def heed(server: Running) -> Client:
    return Client(server.address, "tiny")


def vectors(heed: Client, **inputs: Any) -> Any:
    return heed.infer(inputs, ["sentence_embedding"])["sentence_embedding"].tolist()


def test_the_server_and_its_models_are_ready(about: Facts) -> None:
    assert [about[name] for name in ("live", "ready", "model_ready")] == [True, True, True]
    assert about["version_ready"]["status"] == "StatusCode.NOT_FOUND"
    assert about["server"]["name"] == "heed"
    assert about["server"]["extensions"] == [
        "classification",
        "model_configuration",
        "model_repository",
        "schedule_policy",
        "statistics",
    ]


def test_the_configuration_says_what_the_metadata_say(about: Facts) -> None:
    config, metadata = about["config"]["config"], about["metadata"]
    assert (config["name"], config["platform"], config["backend"]) == ("tiny", "onnxruntime_onnx", "onnxruntime")
    assert config.get("max_batch_size", 0) == 0  # shapes are whole
    assert (
        config["version_policy"]
        == {"specific": {"versions": metadata["versions"]}}
        == {"specific": {"versions": ["1"]}}
    )
    for ours, theirs in (("input", "inputs"), ("output", "outputs")):
        assert [(one["name"], one["dims"]) for one in config[ours]] == [
            (one["name"], one["shape"]) for one in metadata[theirs]
        ]
    types = {one["name"]: one["data_type"] for one in config["input"] + config["output"]}
    assert types["input_ids"] == types["offsets"] == "TYPE_INT64"
    assert types["text"] == types["tokens"] == "TYPE_STRING"
    assert types["sentence_embedding"] == "TYPE_FP32"
    assert all(one["optional"] for one in config["input"])


def test_the_index_lists_every_version(about: Facts) -> None:
    assert about["index"]["models"] == [
        {"name": "seen", "version": "1", "state": "READY"},
        {"name": "tiny", "version": "1", "state": "READY"},
    ]


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("load", "FAILED_PRECONDITION", "--repository-control"),
        ("unload", "FAILED_PRECONDITION", "--repository-control"),
        ("system_memory", "UNIMPLEMENTED", "send tensors in raw_input_contents"),
        ("register", "UNIMPLEMENTED", "send tensors in raw_input_contents"),
        ("cuda_memory", "UNIMPLEMENTED", "send tensors in raw_input_contents"),
        ("trace", "UNIMPLEMENTED", "the operator"),
        ("log", "UNIMPLEMENTED", "the operator"),
    ],
)
def test_what_is_not_for_callers_is_told_so(about: Facts, call: str, status: str, words: str) -> None:
    assert about[call]["status"] == f"StatusCode.{status}"
    assert words in about[call]["message"]


@pytest.mark.parametrize("way", ["ids", "int32", "uint8", "gzip", "deflate", "async", "options"])
def test_however_ids_are_sent_the_answer_has_the_same_bits(infer: Facts, heed: Client, way: str) -> None:
    assert infer[way] == vectors(heed, **IDS)


def test_texts(infer: Facts, heed: Client) -> None:
    assert infer["text"] == vectors(heed, text=["the quick fox", "a dog"])
    assert infer["words"] == [["[CLS]", "fox", "##s", "[SEP]"]]
    assert infer["truncated"] == [1, 32]
    assert "at most 40" in infer["too_long"]["message"]


def test_the_id_comes_back_with_what_was_asked_for_and_nothing_else(infer: Facts) -> None:
    assert infer["named"] == ["mine", ["sentence_embedding"], 1]


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        (
            "uint64",
            "INVALID_ARGUMENT",
            "must be INT64 (or INT32, INT16, INT8, UINT32, UINT16, UINT8, BOOL), got UINT64",
        ),
        ("no_time", "DEADLINE_EXCEEDED", "eadline"),
        ("sequence", "INVALID_ARGUMENT", "is not taken: models here remember nothing"),
        ("shared", "INVALID_ARGUMENT", "is not taken: there is no shared memory here"),
        ("classes_of_vectors", "INVALID_ARGUMENT", "it is for logits"),
        ("unknown", "NOT_FOUND", "model 'nobody' is not served here, only seen, tiny"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(infer: Facts, call: str, status: str, words: str) -> None:
    assert infer[call]["status"] == f"StatusCode.{status}"
    assert words in infer[call]["message"]


def test_the_best_classes_stand_in_place_of_the_logits(images: Facts) -> None:
    every = [[text.split(":") for text in row] for row in images["all_classes"]]
    assert [row[:2] for row in images["all_classes"]] == images["classes"]
    for logits, row in zip(images["logits"], every, strict=True):
        assert [int(index) for _, index, _ in row] == sorted(range(len(logits)), key=lambda each: -logits[each])
        assert [float(score) for score, _, _ in row] == pytest.approx(sorted(logits, reverse=True), abs=1e-6)
        assert [label for _, _, label in row] == [LABELS[int(index)] for _, index, _ in row]


def test_narrower_floats_are_widened_and_wider_ones_refused(images: Facts) -> None:
    assert images["fp16"] == images["fp16_widened"] != images["logits"]
    assert images["bf16"] == images["bf16_widened"] != images["logits"]
    assert "must be FP32 (or FP16, BF16), got FP64" in images["fp64"]["message"]


def test_a_stream_carries_requests_of_several_models_and_its_errors(heard: Facts, heed: Client) -> None:
    ids, image, unknown, dog, smell, last = heard["stream"]
    assert ids == ["0", "tiny", vectors(heed, **IDS), False]
    assert image == ["1", "seen", heard["images"]["logits"], False]
    assert "model 'nobody' is not served here" in unknown["message"]
    assert dog == ["3", "tiny", vectors(heed, text=["a dog"]), False]
    assert "output smell is unknown" in smell["message"]
    assert last == ["5", "tiny", vectors(heed, text=["i"]), True]  # who wants to know is told that it is the final one


def test_statistics_count_requests_rows_and_groups(heard: Facts) -> None:
    facts = heard["statistics"]
    (before,), (after,) = facts["before"], facts["after"]

    def at(one: Any, path: tuple[str, ...]) -> int:
        return at(one.get(path[0], {}), path[1:]) if path else int(one or 0)  # what is 0 is not said

    def added(*path: str) -> int:
        return at(after, path) - at(before, path)

    def groups(one: Facts) -> dict[int, int]:
        return {int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in one["batch_stats"]}

    assert added("inference_count") == 6
    assert {part: added("inference_stats", part, "count") for part in after["inference_stats"]} == {
        "success": 3,
        "fail": 1,
        "queue": 3,
        "compute_input": 3,
        "compute_infer": 3,
        "compute_output": 3,
    }
    whole = added("inference_stats", "success", "ns")
    assert all(0 < added("inference_stats", part, "ns") < whole for part in ("compute_input", "compute_infer", "queue"))
    computed = {rows: count - groups(before).get(rows, 0) for rows, count in groups(after).items()}
    assert sum(rows * count for rows, count in computed.items()) == 6
    assert added("execution_count") == sum(computed.values())
    began, ended = facts["seconds"]
    assert began * 1000 - 1 <= int(after["last_inference"]) <= ended * 1000
    assert facts["models"] == ["seen", "tiny"]
    assert facts["unknown"]["status"] == facts["version"]["status"] == "StatusCode.NOT_FOUND"


def test_asyncio(server: Running, heed: Client) -> None:
    facts = heard_by("triton_aio", server.address)
    expected = [vectors(heed, text=[text]) for text in ("a dog", "the quick fox", "i saw a saw")]
    assert (facts["live"], facts["model_ready"], facts["config"], facts["statistics"]) == (True, True, "tiny", 1)
    assert facts["compressed"] == expected[0]
    assert facts["one_by_one"] == facts["together"]
    answered = [facts["one_by_one"][index] for index in (0, 1, 3)]
    assert answered == expected
    assert "at most 40" in facts["one_by_one"][2]["message"]
    assert [facts["stream"][index] for index in (0, 1, 3)] == [
        [number, vector] for number, vector in zip("013", expected, strict=True)
    ]
    assert "at most 40" in facts["stream"][2]["message"]


def test_models_are_loaded_and_unloaded_where_that_is_allowed(controlled: Running) -> None:
    facts = heard_by("triton_control", controlled.address)
    assert (facts["unload"], facts["load"], facts["ready"]) == (None, None, True)
    assert facts["unloaded"] == [
        {"name": "seen", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded by a caller"}
    ]
    assert facts["config_of_unloaded"]["status"] == "StatusCode.NOT_FOUND"
    assert facts["loaded"] == [{"name": "seen", "version": "1", "state": "READY"}]
    assert facts["unknown"]["status"] == "StatusCode.NOT_FOUND"
    for way in ("with_config", "with_files"):
        assert facts[way]["status"] == "StatusCode.INVALID_ARGUMENT"
        assert "what a model is stands in its bundle" in facts[way]["message"]
