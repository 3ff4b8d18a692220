"""Asks by tritonclient: requests from one .npz, answers to another. Run by `support.ask`, never imported.

python triton_script.py HOST:PORT MODEL REQUESTS.npz ANSWERS.npz [--truncate]
"""

import sys

import numpy as np
import tritonclient.grpc as triton

DATATYPES = {"i": "INT64", "U": "BYTES"}


def make_input(name: str, array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput(name, array.shape, DATATYPES[array.dtype.kind])
    texts = array.dtype.kind == "U"
    made.set_data_from_numpy(np.array([text.encode() for text in array], object) if texts else array)
    return made


def main(address: str, model: str, asked: str, answered: str, *flags: str) -> None:
    parameters = {"truncate": True} if "--truncate" in flags else None
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


if __name__ == "__main__":
    main(*sys.argv[1:])
