"""What the loops without a server share: they are told what to do line by line, and answer with a line.

Letters: L length, D width.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 256  # requests that a loop is given at once; it may look at all of them to make its batches

Ids = np.ndarray  # [L]
Answer = Callable[[Sequence[Ids]], list[np.ndarray]]  # [D] for each request, in their order


def command_line() -> argparse.ArgumentParser:
    """What every loop is told."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--way", required=True)
    return parser


def follow(requests: Path, answer: Answer, run: Callable[[Sequence[Ids]], object] | None = None) -> None:
    """Does what the lines of the standard input say, until it ends. `run` is `answer` if it is left out.

    `{"answers": N, "path": P}` writes the first N answers to a file, `{"seconds": S}` answers for so long.
    """
    with np.load(requests) as file:
        every = [file[name] for name in file.files]
    print(json.dumps({}), flush=True)  # ready
    for line in sys.stdin:
        order = json.loads(line)
        if "path" in order:
            np.save(order["path"], np.stack(answer(every[: order["answers"]])))
            print(json.dumps({}), flush=True)
        else:
            print(json.dumps(timed(run or answer, every, order["seconds"])), flush=True)


def timed(run: Callable[[Sequence[Ids]], object], every: Sequence[Ids], seconds: float) -> dict[str, Any]:
    """Whole chunks, until the time is over."""
    answered, started = 0, time.perf_counter()
    for chunk in chunks(every):
        run(chunk)
        answered += len(chunk)
        if time.perf_counter() - started >= seconds:
            break
    return {"answered": answered, "seconds": time.perf_counter() - started}


def chunks(every: Sequence[Ids]) -> Iterator[Sequence[Ids]]:
    """The requests in turn and over again."""
    endless = (every[number % len(every)] for number in count())
    while True:
        yield list(islice(endless, CHUNK))
