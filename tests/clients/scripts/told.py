"""What the scripts have in common: each makes calls by a client as its users have it, and prints what it was told."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException


def plain(value: Any) -> Any:
    """The same, as JSON has it."""
    if isinstance(value, np.ndarray):
        return value.astype(str).tolist() if value.dtype == object else value.tolist()
    return value


def told(call: Callable[[], Any]) -> Any:
    """What a call gives, or its status and message."""
    try:
        return plain(call())
    except InferenceServerException as error:
        return refused(error)


def refused(error: InferenceServerException) -> dict[str, Any]:
    return {"status": error.status(), "message": error.message()}


def tell(answers: Mapping[str, Any]) -> None:
    json.dump(answers, sys.stdout)
