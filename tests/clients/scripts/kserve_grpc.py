"""kserve's InferenceGRPCClient, where kserve is.    python -m tests.clients.scripts.kserve_grpc HOST:PORT"""

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest  # type: ignore[import-not-found]
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found]

IDS = np.array([[2, 5, 9, 3], [2, 6, 3, 3]])


def request(*inputs: InferInput, **options: object) -> InferRequest:
    output = RequestedOutput("sentence_embedding", parameters={"binary_data": True})
    return InferRequest("tiny", list(inputs), request_id="mine", request_outputs=[output], **options)


def ids(datatype: str, binary: bool) -> InferInput:
    made = InferInput("input_ids", list(IDS.shape), datatype)
    made.set_data_from_numpy(IDS.astype(datatype.lower()), binary_data=binary)
    return made


def text(*texts: str) -> InferInput:
    return InferInput("text", [len(texts)], "BYTES", data=list(texts))


async def vectors(client: InferenceGRPCClient, asked: InferRequest) -> object:
    try:
        response = await client.infer(asked)
    except grpc.RpcError as error:
        return {"status": error.code().name, "message": error.details()}
    assert response.id == "mine"
    return response.outputs[0].as_numpy().tolist()


async def main(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        answers = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("tiny"),
            "raw": await vectors(client, request(ids("INT64", True))),
            "int32": await vectors(client, request(ids("INT32", True))),
            "typed": await vectors(
                client, request(InferInput("input_ids", [2, 4], "INT64", data=IDS.ravel().tolist()))
            ),
            "text": await vectors(client, request(text("the quick fox", "a dog"))),
            "truncated": await vectors(client, request(text("fox " * 60), parameters={"truncate": True})),
            "too_long": await vectors(client, request(text("fox " * 60))),
        }
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
