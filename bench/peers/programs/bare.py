"""The bare onnxruntime loop: the unit of the ratios. It runs in heed's own environment.

Letters: L length, D width.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench.bare import Request, bare_ways, padded, session
from bench.peers.programs.graph import OUTPUT
from bench.peers.programs.loop import Ids, command_line, follow
from heed.server.engine.host import usable_cpus


def whole(ids_L: Ids) -> Request:
    return {"input_ids": ids_L, "attention_mask": np.ones_like(ids_L), "token_type_ids": np.zeros_like(ids_L)}


def main() -> None:
    parser = command_line()
    parser.add_argument("--graph", type=Path, required=True)
    options = parser.parse_args()
    graph = session(options.graph, usable_cpus())

    def answer(requests: Sequence[Ids]) -> list[np.ndarray]:
        return [graph.run([OUTPUT], padded([whole(ids_L)], 0))[0][0] for ids_L in requests]

    with ThreadPoolExecutor(usable_cpus()) as pool:
        way = bare_ways(options.graph, 0, pool, [OUTPUT])[options.way]
        follow(options.requests, answer, lambda requests: way([whole(ids_L) for ids_L in requests]))


if __name__ == "__main__":
    main()
