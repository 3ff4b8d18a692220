"""tritonclient.grpc.aio.    python -m tests.clients.scripts.triton_aio HOST:PORT"""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from tests.clients.scripts.told import plain, refused, tell


def text(*texts: str) -> list[triton.InferInput]:
    made = triton.InferInput("text", [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array([each.encode() for each in texts], object))
    return [made]


WANTED = [triton.InferRequestedOutput("sentence_embedding")]


async def vectors(client: triton.InferenceServerClient, *texts: str, **options: object) -> object:
    try:
        result = await client.infer("tiny", text(*texts), outputs=WANTED, **options)
    except InferenceServerException as error:
        return refused(error)
    return plain(result.as_numpy("sentence_embedding"))


async def on_a_stream(client: triton.InferenceServerClient, *texts: str) -> list[object]:
    async def requests() -> AsyncIterator[dict[str, object]]:
        for number, each in enumerate(texts):
            yield {"model_name": "tiny", "inputs": text(each), "outputs": WANTED, "request_id": str(number)}

    heard: list[object] = []
    async for result, error in client.stream_infer(requests()):
        heard.append(refused(error) if error else [result.get_response().id, plain(result.as_numpy(WANTED[0].name()))])
    return heard


async def main(address: str) -> None:
    async with triton.InferenceServerClient(address) as client:
        texts = ["a dog", "the quick fox", "fox " * 60, "i saw a saw"]
        tell(
            {
                "live": await client.is_server_live(),
                "model_ready": await client.is_model_ready("tiny"),
                "config": (await client.get_model_config("tiny", as_json=True))["config"]["name"],
                "statistics": len((await client.get_inference_statistics("tiny", as_json=True))["model_stats"]),
                "one_by_one": [await vectors(client, each) for each in texts],
                "together": await asyncio.gather(*(vectors(client, each) for each in texts)),
                "compressed": await vectors(client, texts[0], compression_algorithm="gzip"),
                "stream": await on_a_stream(client, *texts),
            }
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
