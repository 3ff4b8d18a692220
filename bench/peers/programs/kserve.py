"""KServe's model server with a custom model.

https://kserve.github.io/archive/0.10/modelserving/v1beta1/custom/custom_model
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # type: ignore[import-not-found]
from kserve.logging import logger  # type: ignore[import-not-found]

from bench.peers.programs.graph import MODEL, OUTPUT, Graph, command_line, free_port


class Encoder(Model):  # type: ignore[misc]
    """Each request by itself, on the event loop or on a thread beside it."""

    def __init__(self, graph: Graph, pool: ThreadPoolExecutor | None) -> None:
        super().__init__(MODEL)
        self._graph = graph
        self._pool = pool
        self.ready = True

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        inputs = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        if self._pool is None:
            embedding_BD = self._graph(inputs)
        else:
            embedding_BD = await asyncio.get_running_loop().run_in_executor(self._pool, self._graph, inputs)
        output = InferOutput(name=OUTPUT, shape=list(embedding_BD.shape), datatype="FP32")
        output.set_data_from_numpy(embedding_BD)
        return InferResponse(response_id=payload.id, model_name=MODEL, infer_outputs=[output])


def main() -> None:
    parser = command_line()
    parser.add_argument("--pool", type=int, default=0, help="threads beside the event loop; 0 for none")
    options, _ = parser.parse_known_args()
    pool = ThreadPoolExecutor(options.pool) if options.pool else None
    # https://kserve.github.io/website/docs/reference/python-runtime-sdk/python-runtime-sdk-api: `workers` are
    # processes for HTTP alone, gRPC has one. It has no batching of its own either: KServe's batcher is a program
    # beside the model server that speaks HTTP.
    server = ModelServer(
        http_port=free_port(), grpc_port=options.port, enable_grpc=True, workers=1, enable_latency_logging=False
    )
    logger.setLevel(logging.WARNING)  # no line for every request
    server.start([Encoder(Graph(options.graph, options.threads), pool)])


if __name__ == "__main__":
    main()
