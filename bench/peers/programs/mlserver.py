"""MLServer with a custom runtime.

https://docs.seldon.ai/mlserver/user-guide/custom
"""

import json
import os
import sys
from pathlib import Path
from tempfile import mkdtemp

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from bench.peers.programs.graph import MODEL, OUTPUT, Graph, command_line, free_port


class Encoder(MLModel):  # type: ignore[misc]
    """One session for each process."""

    async def load(self) -> bool:
        parameters = self.settings.parameters
        self._graph = Graph(parameters.uri, parameters.extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        embedding_BD = self._graph({tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs})
        output = NumpyCodec.encode_output(OUTPUT, embedding_BD)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])


def main() -> None:
    parser = command_line()
    # https://docs.seldon.ai/mlserver/user-guide/parallel-inference: processes, one for each core; 0 for none.
    parser.add_argument("--workers", type=int, required=True)
    # https://docs.seldon.ai/mlserver/user-guide/adaptive-batching: off unless both of its settings are above 0.
    parser.add_argument("--batch", type=int, default=0, help="the most requests of one batch")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that a batch waits for more")
    options = parser.parse_args()
    folder = Path(mkdtemp())
    server = {
        "debug": False,  # no log of every request
        "host": "127.0.0.1",
        "http_port": free_port(),
        "grpc_port": options.port,
        "metrics_endpoint": None,
        "parallel_workers": options.workers,
    }
    model = {
        "name": MODEL,
        "implementation": "bench.peers.programs.mlserver.Encoder",
        "max_batch_size": options.batch,
        "max_batch_time": options.wait,
        "parameters": {"uri": options.graph, "extra": {"threads": options.threads}},
    }
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.execv(Path(sys.executable).with_name("mlserver"), ["mlserver", "start", str(folder)])


if __name__ == "__main__":
    main()
