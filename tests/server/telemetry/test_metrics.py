"""What the numbers say of requests and groups that are known, over gRPC and HTTP, and what becomes of them."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from heed.bundle.sequence_packing import Answer, TokenSequence
from heed.protos import open_inference_pb2 as pb
from heed.protos import tei_pb2
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.protos.tei_pb2_grpc import EmbedStub, TokenizeStub
from heed.server.errors import REASONS
from heed.server.scheduling.batching import OneByOne
from heed.server.scheduling.model_queue import ModelQueue, QueueEntry
from heed.server.scheduling.workers import Batch
from heed.server.telemetry.metrics import Metrics, ServedVersion
from tests.server.support import add_tensor, ids_request, row
from tests.support import Running, run_server

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
QUEUE = 64  # tokens


def metrics_address(server: Running) -> str:
    words = server.log.read_text().split()
    return words[words.index("metrics") + 1]


def text_of(server: Running) -> str:
    with urlopen(f"http://{metrics_address(server)}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(of: Samples, name: str, **labels: str) -> float:
    """The sum of all samples with these labels."""
    return sum(number for (known, pairs), number in of.items() if known == name and labels.items() <= set(pairs))


def sampled(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one model."""
    folder = tmp_path_factory.mktemp("repository")
    for number in ("1", "2"):
        copytree(tiny_bundle, folder / "tiny" / number)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    flags = ("--repository-control", "--recheck-seconds", "0", "--threads", "1", "--max-queue-tokens", str(QUEUE))
    with run_server(repository, tmp_path_factory.mktemp("metrics") / "log", *flags) as running:
        wait_for_block(running)
        yield running


def wait_for_block(server: Running) -> None:
    until = time.monotonic() + 60
    while "metrics" not in server.log.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def refused(call: Any, request: object, **options: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call(request, **options)
    return error.value.code()


def test_requests_of_both_doors_are_counted_by_method_status_and_stage(server: Running, channel: grpc.Channel) -> None:
    before = samples(text_of(server))
    tensors, texts = GRPCInferenceServiceStub(channel), EmbedStub(channel)
    tensors.ModelInfer(ids_request([[2, 3]]), timeout=60)
    list(tensors.ModelStreamInfer(iter([ids_request([[2, 3]]), ids_request([[-1]])]), timeout=60))
    texts.Embed(tei_pb2.EmbedRequest(inputs="a"), timeout=60)
    list(texts.EmbedStream(iter([tei_pb2.EmbedRequest(inputs="a")] * 3), timeout=60))
    TokenizeStub(channel).Tokenize(tei_pb2.EncodeRequest(inputs="a"), timeout=60)
    assert refused(tensors.ModelInfer, ids_request([[2]], model="\n# made up"), timeout=60).name == "NOT_FOUND"
    now = samples(text_of(server))

    def grown(name: str, **labels: str) -> float:
        return value(now, name, **labels) - value(before, name, **labels)

    wanted = {
        ("tiny", "ModelInfer", "OK"): 1,
        ("tiny", "ModelStreamInfer", "OK"): 1,
        ("tiny", "ModelStreamInfer", "INVALID_ARGUMENT"): 1,
        ("tiny", "Embed", "OK"): 1,
        ("tiny", "EmbedStream", "OK"): 3,
        ("tiny", "Tokenize", "OK"): 1,
        ("", "ModelInfer", "NOT_FOUND"): 1,
    }
    labels = [{"model": model, "method": method, "code": code} for model, method, code in wanted]
    assert [grown("heed_request_seconds_count", **one) for one in labels] == list(wanted.values())
    assert grown("heed_request_seconds_count") == sum(wanted.values())
    stages = {
        stage: grown("heed_stage_seconds_count", stage=stage) for stage in ("prepare", "queue", "compute", "encode")
    }
    assert stages == dict.fromkeys(stages, 6)  # those that were computed
    answered = grown("heed_request_seconds_sum", code="OK") - grown("heed_request_seconds_sum", method="Tokenize")
    assert grown("heed_stage_seconds_sum") == pytest.approx(answered)  # nothing is left out, nothing counted twice
    assert grown("heed_refused_total", model="tiny", reason="invalid_argument") == 1
    assert grown("heed_refused_total", model="", reason="not_found") == 1
    assert grown("heed_refused_total") == 2
    assert value(now, "heed_requests_in_flight") == 0


def test_no_label_is_of_a_callers_making(server: Running, channel: grpc.Channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    request = ids_request([[2]], model="evil-model")
    request.id, request.model_version = "evil-id", "evil-version"
    refused(stub.ModelInfer, request, timeout=60, metadata=[("evil", "evil")])
    request = ids_request([[2]])
    add_tensor(request, "evil-input", [[1]])
    refused(stub.ModelInfer, request, timeout=60)
    assert "evil" not in text_of(server)


def test_refusals_tell_a_full_queue_from_a_lack_of_time(server: Running, channel: grpc.Channel) -> None:
    """One thread, with a queue that one long request fills: of many at once, some find it full."""
    stub = GRPCInferenceServiceStub(channel)
    many = ids_request([[2] * 8] * (QUEUE // 8))
    before = samples(text_of(server))
    codes: set[grpc.StatusCode] = set()
    until = time.monotonic() + 60
    while grpc.StatusCode.RESOURCE_EXHAUSTED not in codes:
        assert time.monotonic() < until
        codes |= {call.code() for call in [stub.ModelInfer.future(many, timeout=60) for _ in range(16)]}
    now = samples(text_of(server))
    full = value(now, "heed_refused_total", reason="queue_full") - value(
        before, "heed_refused_total", reason="queue_full"
    )
    assert full >= 1
    assert value(now, "heed_refused_total", reason="no_time") == 0
    assert value(now, "heed_queue_limit_tokens") == QUEUE


def test_a_deadline_that_passes_while_a_request_is_computed_is_not_a_caller_who_left(
    server: Running, channel: grpc.Channel
) -> None:
    stub = GRPCInferenceServiceStub(channel)
    long = ids_request([[2] * 40] * 1)

    def counted(code: str) -> float:
        return value(samples(text_of(server)), "heed_request_seconds_count", code=code, method="ModelInfer")

    before = counted("DEADLINE_EXCEEDED"), counted("CANCELLED")
    left = stub.ModelInfer.future(long, timeout=60)
    until = time.monotonic() + 60
    while counted("CANCELLED") == before[1]:
        assert time.monotonic() < until
        left = stub.ModelInfer.future(long, timeout=60)
        time.sleep(0.002)
        left.cancel()
    late = 0.0005
    while counted("DEADLINE_EXCEEDED") == before[0]:
        assert time.monotonic() < until
        stub.ModelInfer.future(long, timeout=late).code()
        late = late * 1.3 if late < 0.05 else 0.0005


async def test_batches_count_rows_tokens_and_padding() -> None:
    """Rows of 1, 2 and 5 tokens: a padded batch of them would have 15, and 7 of those would be padding."""
    metrics = Metrics()
    added = metrics.add(version("m", 1), threads=3)
    fails = False

    def run(rows: Any, outputs: frozenset[str], exclusive: bool, /) -> list[Answer]:
        if fails:
            raise RuntimeError("the device is gone")
        return [{"n": np.array(len(one))} for one in rows]

    queue = ModelQueue(run, OneByOne(), lambda: None, [added])
    rows: list[TokenSequence] = [row(2), row(2, 3), row(2, 3, 4, 5, 6)]

    def batch() -> Batch:
        return Batch(queue, [QueueEntry(one, frozenset(), math.inf, queue.loop.create_future()) for one in rows])

    answers = batch().compute(exclusive=True)
    assert isinstance(answers, list)
    assert [int(answer["n"]) for answer in answers] == [1, 2, 5]
    of = {"model": "m", "version": "1"}
    assert sampled(metrics, "heed_group_rows_sum", **of) == 3
    assert sampled(metrics, "heed_group_tokens_sum", **of) == 8
    assert sampled(metrics, "heed_attention_slots_total", **of) == 15
    assert sampled(metrics, "heed_group_seconds_count", **of) == 1
    assert sampled(metrics, "heed_threads") == 3
    assert added.statistics.batches[3].count == 1
    fails = True
    assert isinstance(batch().compute(exclusive=True), RuntimeError)
    assert sampled(metrics, "heed_failed_groups_total", **of) == 1
    assert sampled(metrics, "heed_group_rows_sum", **of) == 3


def version(name: str, number: int) -> ServedVersion:
    return ServedVersion(name, str(number), f"sha256:{number}", "fp32", "none")


def labelled(metrics: Metrics, **labels: str) -> set[str]:
    """The names of all samples with these labels."""
    found = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {sample.name for sample in found if labels.items() <= sample.labels.items()}


def test_what_is_unloaded_leaves_only_how_often_it_was_loaded() -> None:
    metrics = Metrics()
    first = metrics.add(version("m", 1))
    second = metrics.add(version("m", 2))  # takes over, and the first one finishes what it has
    assert {"heed_model_info", "heed_waiting_rows", "heed_contract_checks_total"} <= labelled(
        metrics, model="m", version="1"
    )
    metrics.remove(first)
    assert labelled(metrics, model="m", version="1") == set()
    assert "heed_refused_total" in labelled(metrics, model="m")
    again = metrics.add(version("m", 2))  # its files have changed
    metrics.remove(second)
    assert "heed_model_info" in labelled(metrics, model="m", version="2")
    metrics.remove(again)
    assert labelled(metrics, model="m") == {"heed_version_loads_total"}
    assert sampled(metrics, "heed_version_loads_total", model="m", result="loaded") == 1
    assert sampled(metrics, "heed_version_loads_total", model="m", result="swapped") == 2


def test_every_reason_is_there_before_the_first_refusal() -> None:
    """Otherwise a rate would miss the first one."""
    metrics = Metrics()
    metrics.add(version("m", 1))
    for model in ("", "m"):
        for reason in REASONS:
            assert sampled(metrics, "heed_refused_total", model=model, reason=reason) == 0
    metrics.refused("queue_full")
    assert sampled(metrics, "heed_refused_total", model="", reason="queue_full") == 1


def test_a_version_that_fails_is_seen_until_it_is_gone(
    server: Running, repository: Path, channel: grpc.Channel
) -> None:
    stub: Any = GRPCInferenceServiceStub(channel)
    broken = copytree(repository / "tiny" / "2", repository / "tiny" / "3")
    (broken / "model.fp32.onnx").write_bytes(b"broken")
    refused(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiny"), timeout=60)
    now = samples(text_of(server))
    assert value(now, "heed_failed_versions") == 1
    assert value(now, "heed_version_loads_total", model="tiny", result="failed") == 1
    assert value(now, "heed_model_info", model="tiny", version="2") == 1
    for file in broken.iterdir():
        file.unlink()
    broken.rmdir()
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"), timeout=60)
    assert value(samples(text_of(server)), "heed_failed_versions") == 0


def test_a_model_that_callers_unload_loses_its_series(server: Running, channel: grpc.Channel) -> None:
    stub: Any = GRPCInferenceServiceStub(channel)
    stub.ModelInfer(ids_request([[2, 3]]), timeout=60)
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"), timeout=60)
    until = time.monotonic() + 60
    while {name for name, pairs in samples(text_of(server)) if ("model", "tiny") in pairs} != {
        "heed_version_loads_total"
    }:
        assert time.monotonic() < until
        time.sleep(0.05)
    refused(stub.ModelInfer, ids_request([[2, 3]]), timeout=60)
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"), timeout=60)
    stub.ModelInfer(ids_request([[2, 3]]), timeout=60)
    now = samples(text_of(server))
    assert value(now, "heed_request_seconds_count", model="tiny") == 1
    assert value(now, "heed_version_loads_total", model="tiny", result="loaded") == 2


def test_the_machine_and_the_software_are_told(server: Running) -> None:
    now = samples(text_of(server))
    assert value(now, "process_resident_memory_bytes") < value(now, "heed_memory_limit_bytes") < math.inf
    assert value(now, "heed_threads") == 1
    (build,) = (dict(pairs) for name, pairs in now if name == "heed_build_info")
    assert set(build) == {"version", "python", "onnxruntime"}
    assert not any(name.endswith("_created") for name, _ in now)
