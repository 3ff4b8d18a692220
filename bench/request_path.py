"""How far a request travels in the server: `scripts/request-path BUNDLE`.

A live server in this process answers each call a few times, so that its header is known. Then one more call is followed
with `sys.setprofile`, in the event loop and in the threads that compute: the modules of heed that it passes, the moves
between them (a call whose module is not that of the call before), and how deep its calls go. Threads take turns, so the
moves may differ by one or two from run to run.
"""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import grpc
import numpy as np

import heed
from heed.client.wire import infer_request
from heed.protos import tei_pb2 as tei
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.protos.tei_pb2_grpc import EmbedStub
from heed.server.lifecycle import Ready, Server
from heed.server.settings import Settings

ROOT = str(Path(heed.__file__).parent)
TIMES = 5  # calls before the one that is followed
IDS = np.array([[101, 2129, 2079, 1045, 102]])


class Frame(NamedTuple):
    module: str
    depth: int  # frames of heed on the stack


def module_of(frame: FrameType) -> str:
    """The module of heed that a frame runs; empty for others, and for generated code."""
    file = frame.f_code.co_filename
    return file[len(ROOT) + 1 : -3] if file.startswith(ROOT) and "_pb2" not in file else ""


class Follower:
    """Notes the calls of all threads while it is on."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.is_on = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if not self.is_on or event != "call" or not (module := module_of(frame)):
            return
        depth, at = 0, frame
        while at := at.f_back:  # type: ignore[assignment]  # None ends it
            depth += bool(module_of(at))
        self.frames.append(Frame(module, depth + 1))

    async def follow(self, call: Callable[[], Awaitable[Any]]) -> list[Frame]:
        self.frames, self.is_on = [], True
        sys.setprofile(self)
        await call()
        await asyncio.sleep(0.05)  # what comes after the answer
        sys.setprofile(None)
        self.is_on = False
        return self.frames


def report(name: str, frames: list[Frame]) -> None:
    modules = sorted({frame.module for frame in frames})
    moves = sum(one.module != other.module for one, other in pairwise(frames))
    print(f"{name}: {len(modules)} modules, {moves} moves, {max(frame.depth for frame in frames)} calls deep")
    print("  " + ", ".join(modules))


async def main(bundle: Path) -> None:
    follower = Follower()
    threading.setprofile(follower)  # in threads that start from now on
    ready: list[Ready] = []
    settings = Settings(bundle=bundle, port=0, metrics_port=-1, linger_seconds=0, recheck_seconds=0, device="cpu")
    server = Server(settings, ready.append)
    await server.startup()
    async with grpc.aio.insecure_channel(ready[0].address) as channel:
        infer, embed = GRPCInferenceServiceStub(channel).ModelInfer, EmbedStub(channel).Embed
        request = infer_request("", "", {"input_ids": IDS}, ("sentence_embedding",), truncate=False)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "ModelInfer": lambda: infer(request),
            "tei Embed": lambda: embed(tei.EmbedRequest(inputs="How do I get my money back?")),
        }
        for name, call in calls.items():
            for _ in range(TIMES):
                await call()
            report(name, await follower.follow(call))
    await server.shutdown()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
