"""Loading and unloading by tritonclient.grpc.    python -m tests.clients.scripts.triton_control HOST:PORT"""

import sys

import tritonclient.grpc as triton

from tests.clients.scripts.told import tell, told


def main(address: str) -> None:
    with triton.InferenceServerClient(address) as client:

        def index() -> object:
            return client.get_model_repository_index(as_json=True)["models"]

        tell(
            {
                "unload": told(lambda: client.unload_model("seen", unload_dependents=True)),
                "unloaded": index(),
                "config_of_unloaded": told(lambda: client.get_model_config("seen")),
                "with_config": told(lambda: client.load_model("seen", config='{"max_batch_size": 8}')),
                "with_files": told(lambda: client.load_model("seen", config="{}", files={"file:1/model.onnx": b"x"})),
                "unknown": told(lambda: client.load_model("nobody")),
                "load": told(lambda: client.load_model("seen")),
                "loaded": index(),
                "ready": client.is_model_ready("seen"),
            }
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
