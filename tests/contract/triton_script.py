"""Asks by tritonclient: requests from one .npz, answers to another. Run by `support.ask`, never imported.

Each line of stdin is a JSON list, [HOST:PORT, MODEL, REQUESTS.npz, ANSWERS.npz, whether to truncate]; when it is
answered, a line of JSON on stdout is null, or the traceback of what failed.
"""

import json
import sys
import traceback

import numpy as np
import tritonclient.grpc as triton

DATATYPES = {"i": "INT64", "U": "BYTES"}


def make_input(name: str, array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput(name, array.shape, DATATYPES[array.dtype.kind])
    texts = array.dtype.kind == "U"
    made.set_data_from_numpy(np.array([text.encode() for text in array], object) if texts else array)
    return made


def answer(address: str, model: str, asked: str, answered: str, truncate: bool) -> None:
    parameters = {"truncate": True} if truncate else None
    requests: dict[str, list[triton.InferInput]] = {}
    with np.load(asked) as arrays:
        for key in arrays.files:
            index, name = key.split("/")
            requests.setdefault(index, []).append(make_input(name, arrays[key]))
    answers = {}
    with triton.InferenceServerClient(address) as client:
        for index, inputs in requests.items():
            result = client.infer(model, inputs, parameters=parameters)
            for output in result.get_response().outputs:
                answers[f"{index}/{output.name}"] = result.as_numpy(output.name)
    np.savez(answered, **answers)


def main() -> None:
    for line in sys.stdin:
        failure = None
        try:
            answer(*json.loads(line))
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps(failure), flush=True)


if __name__ == "__main__":
    main()
