"""Every call of tritonclient.grpc that one machine has.    python -m tests.clients.scripts.triton_sync HOST:PORT

The server has `tiny`, which takes texts and ids, and `seen`, which takes images and gives logits.
"""

import queue
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from ml_dtypes import bfloat16

from tests.clients.scripts.told import plain, refused, tell, told

IDS = np.array([[2, 5, 9, 3], [2, 6, 3, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
LONG = np.array([b"fox " * 60], object)


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


def ids(dtype: str = "INT64", mask: str = "INT64") -> list[triton.InferInput]:
    def as_type(array: np.ndarray, datatype: str) -> np.ndarray:
        return array.astype(np.bool_ if datatype == "BOOL" else datatype.lower())

    return [
        tensor("input_ids", as_type(IDS, dtype), dtype),
        tensor("attention_mask", as_type(MASK, mask), mask),
    ]


def text(*texts: str) -> list[triton.InferInput]:
    return [tensor("text", np.array([each.encode() for each in texts], object), "BYTES")]


def output(name: str, classes: int = 0) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, class_count=classes)]


def vectors(client: triton.InferenceServerClient, inputs: list[triton.InferInput], **options: object) -> Any:
    result = client.infer("tiny", inputs, outputs=output("sentence_embedding"), **options)
    return result.as_numpy("sentence_embedding")


def about_the_server(client: triton.InferenceServerClient) -> dict[str, object]:
    return {
        "live": told(client.is_server_live),
        "ready": told(client.is_server_ready),
        "model_ready": told(lambda: client.is_model_ready("tiny")),
        "version_ready": told(lambda: client.is_model_ready("tiny", "7")),
        "server": told(lambda: client.get_server_metadata(as_json=True)),
        "metadata": told(lambda: client.get_model_metadata("tiny", as_json=True)),
        "config": told(lambda: client.get_model_config("tiny", as_json=True)),
        "index": told(lambda: client.get_model_repository_index(as_json=True)),
        "load": told(lambda: client.load_model("tiny")),
        "unload": told(lambda: client.unload_model("tiny")),
        "system_memory": told(client.get_system_shared_memory_status),
        "register": told(lambda: client.register_system_shared_memory("a", "/a", 8)),
        "cuda_memory": told(client.get_cuda_shared_memory_status),
        "trace": told(client.get_trace_settings),
        "log": told(lambda: client.update_log_settings({"log_info": True})),
    }


def of_many_kinds(client: triton.InferenceServerClient) -> dict[str, object]:
    waiting: queue.Queue[Any] = queue.Queue()
    client.async_infer("tiny", ids(), lambda result, error: waiting.put((result, error)))
    result, error = waiting.get(timeout=60)
    in_memory = triton.InferRequestedOutput("sentence_embedding")
    in_memory.set_shared_memory("mine", 64)
    named = client.infer("tiny", ids(), request_id="mine", outputs=[*output("sentence_embedding")]).get_response()
    return {
        "ids": told(lambda: vectors(client, ids())),
        "int32": told(lambda: vectors(client, ids("INT32", "INT32"))),
        "uint8": told(lambda: vectors(client, ids("UINT8", "BOOL"))),
        "uint64": told(lambda: vectors(client, ids("UINT64"))),
        "text": told(lambda: vectors(client, text("the quick fox", "a dog"))),
        "gzip": told(lambda: vectors(client, ids(), compression_algorithm="gzip")),
        "deflate": told(lambda: vectors(client, ids(), compression_algorithm="deflate")),
        "async": error or plain(result.as_numpy("sentence_embedding")),
        "named": [named.id, [each.name for each in named.outputs], len(named.raw_output_contents)],
        "options": told(lambda: vectors(client, ids(), priority=1, timeout=60_000_000, client_timeout=60)),
        "too_long": told(lambda: vectors(client, [tensor("text", LONG, "BYTES")])),
        "truncated": told(
            lambda: vectors(client, [tensor("text", LONG, "BYTES")], parameters={"truncate": True}).shape
        ),
        "words": told(lambda: client.infer("tiny", text("foxs"), outputs=output("tokens")).as_numpy("tokens")),
        "no_time": told(lambda: vectors(client, text(*["i saw a saw"] * 1000), client_timeout=1e-6)),
        "sequence": told(lambda: vectors(client, ids(), sequence_id=7, sequence_start=True)),
        "shared": told(lambda: client.infer("tiny", ids(), outputs=[in_memory])),
        "classes_of_vectors": told(lambda: client.infer("tiny", ids(), outputs=output("sentence_embedding", 2))),
        "unknown": told(lambda: client.infer("nobody", ids())),
    }


def of_images(client: triton.InferenceServerClient) -> dict[str, object]:
    def logits(array: np.ndarray, datatype: str, classes: int = 0) -> Any:
        result = client.infer("seen", [tensor("pixel_values", array, datatype)], outputs=output("logits", classes))
        return result.as_numpy("logits")

    half = IMAGES.astype(np.float16)
    brain = IMAGES.astype(bfloat16)
    return {
        "logits": plain(logits(IMAGES, "FP32")),
        "classes": plain(logits(IMAGES, "FP32", 2)),
        "all_classes": plain(logits(IMAGES, "FP32", 99)),
        "fp16": plain(logits(half, "FP16")),
        "fp16_widened": plain(logits(half.astype(np.float32), "FP32")),
        "bf16": plain(logits(brain, "BF16")),
        "bf16_widened": plain(logits(brain.astype(np.float32), "FP32")),
        "fp64": told(lambda: logits(IMAGES.astype(np.float64), "FP64")),
    }


def on_a_stream(client: triton.InferenceServerClient) -> list[object]:
    """Two models, several lengths, and two that are wrong: what comes back, in its order."""
    heard: queue.Queue[tuple[triton.InferResult | None, triton.InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: heard.put((result, error)))
    asked = 0

    def ask(model: str, inputs: list[triton.InferInput], **options: object) -> None:
        nonlocal asked
        client.async_stream_infer(model, inputs, request_id=str(asked), **options)
        asked += 1

    ask("tiny", ids(), outputs=output("sentence_embedding"))
    ask("seen", [tensor("pixel_values", IMAGES, "FP32")], outputs=output("logits"))
    ask("nobody", ids())
    ask("tiny", text("a dog"), outputs=output("sentence_embedding"))
    ask("tiny", text("the quick fox saw a dog"), outputs=output("smell"))
    ask("tiny", text("i"), outputs=output("sentence_embedding"), enable_empty_final_response=True)
    answers: list[object] = []
    for _ in range(asked):
        result, error = heard.get(timeout=60)
        if result is None:
            assert error is not None
            answers.append(refused(error))
            continue
        response = result.get_response()
        (name,) = (each.name for each in response.outputs)
        final = response.parameters["triton_final_response"].bool_param
        answers.append([response.id, response.model_name, plain(result.as_numpy(name)), final])
    client.stop_stream()
    return answers


def counted(client: triton.InferenceServerClient) -> dict[str, object]:
    """What three requests of two rows each and one that is wrong add to the statistics."""

    def now() -> object:
        return client.get_inference_statistics("tiny", as_json=True)["model_stats"]

    before, began = now(), time.time()
    for _ in range(3):
        vectors(client, ids())
    told(lambda: vectors(client, ids("UINT64")))
    return {
        "before": before,
        "after": now(),
        "seconds": [began, time.time()],
        "models": [one["name"] for one in client.get_inference_statistics(as_json=True)["model_stats"]],
        "unknown": told(lambda: client.get_inference_statistics("nobody")),
        "version": told(lambda: client.get_inference_statistics("tiny", "7")),
    }


def main(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        answers = {
            "about": about_the_server(client),
            "infer": of_many_kinds(client),
            "images": of_images(client),
            "stream": on_a_stream(client),
            "statistics": counted(client),
        }
    tell(answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
