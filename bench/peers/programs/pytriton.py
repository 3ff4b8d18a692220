"""Triton Inference Server, as PyTriton brings and runs it.

https://triton-inference-server.github.io/pytriton/latest/inference_callables/
"""

import os
import sysconfig
from collections.abc import Callable

import numpy as np
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

from bench.peers.programs.graph import INPUTS, MODEL, OUTPUT, Graph, command_line, free_port


def instance(graph: Graph) -> Callable[..., object]:
    """What computes a batch that Triton's dynamic batcher made."""

    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {OUTPUT: graph(inputs)}

    return batch(infer)  # type: ignore[no-any-return]


def main() -> None:
    parser = command_line()
    # https://triton-inference-server.github.io/pytriton/latest/binding_models
    parser.add_argument("--instances", type=int, required=True)
    # https://triton-inference-server.github.io/pytriton/latest/binding_configuration
    parser.add_argument("--batch", type=int, default=32, help="the most rows of one batch")
    parser.add_argument("--wait", type=int, default=0, help="microseconds that a batch waits for more")
    options = parser.parse_args()
    # https://triton-inference-server.github.io/pytriton/latest/installation/: Triton's own processes load libpython,
    # which has to be the one of this interpreter.
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    graphs = [Graph(options.graph, options.threads) for _ in range(options.instances)]
    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=options.port,
        http_address="127.0.0.1",
        http_port=free_port(),
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=[instance(graph) for graph in graphs],
            inputs=[Tensor(name=name, dtype=np.int64, shape=(-1,)) for name in INPUTS],
            outputs=[Tensor(name=OUTPUT, dtype=np.float32, shape=(graphs[0].width,))],
            config=ModelConfig(
                max_batch_size=options.batch, batcher=DynamicBatcher(max_queue_delay_microseconds=options.wait)
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
