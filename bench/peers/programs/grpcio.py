"""A plain grpcio server with a pool of threads: what one writes before looking for a server.

https://grpc.io/docs/languages/python/basics/#starting-the-server
"""

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from bench.peers.programs.graph import OUTPUT, Graph, command_line
from heed.protos import open_inference_pb2 as pb
from heed.protos import open_inference_pb2_grpc as pb_grpc


class Servicer(pb_grpc.GRPCInferenceServiceServicer):
    """Each request by itself, on the thread that took it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        tensors = zip(request.inputs, request.raw_input_contents, strict=True)
        embedding_BD = self._graph(
            {tensor.name: np.frombuffer(raw, np.int64).reshape(tensor.shape) for tensor, raw in tensors}
        )
        response = pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=[embedding_BD.tobytes()])
        response.outputs.add(name=OUTPUT, datatype="FP32", shape=embedding_BD.shape)
        return response


def main() -> None:
    parser = command_line()
    parser.add_argument("--workers", type=int, required=True, help="threads that take requests")
    options = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(options.workers))
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(Graph(options.graph, options.threads)), server)
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
