"""A server whose answers are known, and that can be told what to do wrong."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np

from heed.client.wire import _decode_bytes
from heed.protos import heed_pb2, heed_pb2_grpc
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

PUSHBACK = "grpc-retry-pushback-ms"


@dataclass
class Refusal:
    """What a call is answered with instead."""

    code: grpc.StatusCode
    pushback: str | None = None  # in the trailing metadata
    reason: str | None = None  # likewise


def answers_to(
    messages: Iterator[heed_pb2.Requests], answer: Callable[[pb.ModelInferRequest], pb.ModelStreamInferResponse]
) -> Iterator[heed_pb2.Answers]:
    """What a stream of many is answered: all requests at once, each answer when it is there."""
    done: SimpleQueue[heed_pb2.Answers | None] = SimpleQueue()

    def answer_one(request: pb.ModelInferRequest) -> None:
        answered = answer(request)
        answered.infer_response.id = request.id
        done.put(heed_pb2.Answers(answers=[answered]))

    def read(pool: ThreadPoolExecutor) -> None:
        begun = []
        with suppress(Exception):  # the caller has gone
            for message in messages:
                begun += [pool.submit(answer_one, request) for request in message.requests]
        wait(begun)
        done.put(None)

    with ThreadPoolExecutor(33) as pool:
        pool.submit(read, pool)
        yield from iter(done.get, None)


@dataclass
class Echo(heed_pb2_grpc.InferenceServicer, GRPCInferenceServiceServicer):
    """Embeds the text `7` as `[7.0]`."""

    refusals: list[Refusal] = field(default_factory=list)  # of the first requests
    digest: str = "sha256:one"
    longest: float = 0.0  # seconds that an answer takes
    rows: list[int] = field(default_factory=list)  # of each request
    tokens: list[str] = field(default_factory=list)  # of each call
    at_once: int = 0  # requests, at most
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        self._called(context)
        refusal = self._next_refusal()
        if refusal:
            context.set_trailing_metadata(_trailers(refusal))
            context.abort(refusal.code, "not now")
        return self._answer(request)

    def InferMany(self, messages: Iterator[heed_pb2.Requests], context: Any) -> Iterator[heed_pb2.Answers]:
        self._called(context)
        return answers_to(messages, self._answer_or_refuse)

    def _answer_or_refuse(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        refusal = self._next_refusal()
        if refusal is None:
            return pb.ModelStreamInferResponse(infer_response=self._answer(request))
        answer = pb.ModelStreamInferResponse(error_message="not now")
        answer.infer_response.parameters["status"].string_param = refusal.code.name
        if refusal.pushback is not None:
            answer.infer_response.parameters["retry_after_ms"].int64_param = int(refusal.pushback)
        if refusal.reason is not None:
            answer.infer_response.parameters["reason"].string_param = refusal.reason
        return answer

    def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        self._called(context)
        return pb.ModelMetadataResponse(name=request.name, versions=["1"])

    def _called(self, context: Any) -> None:
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))

    def _next_refusal(self) -> Refusal | None:
        with self._lock:
            return self.refusals.pop(0) if self.refusals else None

    def _answer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        texts = _decode_bytes(request.raw_input_contents[0])
        with self._lock:
            self.rows.append(len(texts))
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        time.sleep(random.uniform(0, self.longest))
        with self._lock:
            self._now -= 1
        response = pb.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="sentence_embedding", datatype="FP32", shape=[len(texts), 1])
        response.raw_output_contents.append(np.array([float(text) for text in texts], "<f4").tobytes())
        response.parameters["digest"].string_param = self.digest
        return response


def _trailers(refusal: Refusal) -> list[tuple[str, str]]:
    trailers = [(PUSHBACK, refusal.pushback), ("heed-reason", refusal.reason)]
    return [(name, value) for name, value in trailers if value is not None]


@contextmanager
def running(echo: Echo, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """Its address."""
    server = grpc.server(ThreadPoolExecutor(32))
    add_GRPCInferenceServiceServicer_to_server(echo, server)
    heed_pb2_grpc.add_InferenceServicer_to_server(echo, server)
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
