"""Triton's classification extension: the best classes as texts, instead of the logits.

Letters: B batch, C classes.
"""

from collections.abc import Mapping

import numpy as np

from heed.bundle import Manifest
from heed.bundle.sequence_packing import Arrays
from heed.server.errors import InvalidArgument


def check_classes(manifest: Manifest, classes: Mapping[str, int]) -> None:
    """Raises InvalidArgument if classes are requested of an output that has none."""
    sizes = {spec.name: spec.shape for spec in manifest.outputs}
    for name in classes:
        if name != "logits" or len(sizes.get(name, ())) != 2:
            raise InvalidArgument(
                f"parameter classification of output {name} is not taken: it is for logits [B, labels], "
                "of models that label whole texts or images"
            )


def best(logits_BC: np.ndarray, count: int, labels: list[str]) -> np.ndarray:
    """`[B, min(count, C)]`: "score:index:label", best first; without labels "score:index"."""
    names = [f":{label}" for label in labels] or [""] * logits_BC.shape[1]
    order = np.argsort(-logits_BC, axis=1, kind="stable")[:, :count]
    return np.array(
        [
            [f"{row[index]:f}:{index}{names[index]}" for index in chosen]
            for row, chosen in zip(logits_BC, order, strict=True)
        ]
    )


def put_classes(manifest: Manifest, arrays: Arrays, classes: Mapping[str, int]) -> None:
    for name, count in classes.items():
        arrays[name] = best(arrays[name], count, manifest.labels)
