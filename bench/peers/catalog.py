"""Who takes part, and which settings are tried for each: all that its documentation names for a CPU."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.bare import BATCH
from heed.server.engine.host import usable_cpus

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = Path(__file__).parent / "requirements"
CORES = str(usable_cpus())


@dataclass(frozen=True)
class Peer:
    """One way to answer the requests. In commands `{graph}`, `{port}` and so on stand for what the run has made."""

    name: str
    command: tuple[str, ...]  # after the interpreter
    settings: Mapping[str, tuple[str, ...]]  # by what they are called; the fastest whose answers are right is kept
    served: bool = True  # or a loop in its own process
    requirements: Path | None = None  # of an environment of its own; heed's if there are none
    own_client: bool = False  # asked by heed's client, and not by the calls that all servers take


def program(name: str, *arguments: str) -> tuple[str, ...]:
    return "-m", f"bench.peers.programs.{name}", *arguments


SERVER = ("--graph", "{graph}", "--port", "{port}")

HEED = Peer(
    name="heed",
    command=("-m", "heed", "serve", "{bundle}", "--port", "{port}", "--metrics-port", "-1", "--linger-seconds", "0"),
    settings={"as it comes": ()},
)

HEED_BY_CLIENT = replace(HEED, name="heed, asked by its client", own_client=True)

BARE = Peer(
    name="bare onnxruntime loop",
    command=program("bare", "--graph", "{graph}", "--requests", "{requests}"),
    settings={  # the ways of bench.bare
        way: ("--way", f"padded, {way}")
        for way in (
            "one by one, each on all cores",
            "one by one, each on one core",
            f"batches of {BATCH} in length order, each on all cores",
            f"batches of {BATCH} in length order, each on one core",
        )
    },
    served=False,
)

PEERS = (
    Peer(
        name="grpcio",
        requirements=REQUIREMENTS / "grpcio.txt",
        command=program("grpcio", *SERVER),
        settings={
            "a thread for each core, each run on one core": ("--workers", CORES, "--threads", "1"),
            "32 threads, each run on one core": ("--workers", "32", "--threads", "1"),
            "one thread, each run on all cores": ("--workers", "1", "--threads", CORES),
        },
    ),
    Peer(
        name="mlserver",
        requirements=REQUIREMENTS / "mlserver.txt",
        command=program("mlserver", *SERVER),
        settings={
            "a worker for each core": ("--workers", CORES, "--threads", "1"),
            "one worker on all cores": ("--workers", "1", "--threads", CORES),
            "no worker, all cores": ("--workers", "0", "--threads", CORES),
            "a worker for each core, adaptive batching": (
                *("--workers", CORES, "--threads", "1"),
                *("--batch", "8", "--wait", "0.005"),
            ),
        },
    ),
    Peer(
        name="pytriton",
        requirements=REQUIREMENTS / "pytriton.txt",
        command=program("pytriton", *SERVER),
        settings={
            "an instance for each core": ("--instances", CORES, "--threads", "1"),
            "an instance for each core, batches wait 1 ms": (
                *("--instances", CORES, "--threads", "1"),
                *("--wait", "1000"),
            ),
            "twice as many instances": ("--instances", str(2 * usable_cpus()), "--threads", "1"),
            "one instance on all cores": ("--instances", "1", "--threads", CORES),
        },
    ),
    Peer(
        name="kserve",
        requirements=REQUIREMENTS / "kserve.txt",
        command=program("kserve", *SERVER),
        settings={
            "a thread for each core": ("--pool", CORES, "--threads", "1"),
            "one thread, all cores": ("--pool", "1", "--threads", CORES),
            "on the event loop, all cores": ("--pool", "0", "--threads", CORES),
        },
    ),
    Peer(
        name="sentence-transformers",
        requirements=REQUIREMENTS / "sentence-transformers.txt",
        command=program("sentence_transformers", "--source", "{source}", "--requests", "{requests}"),
        settings={
            "one by one, each on all cores": ("--way", "1", "--threads", CORES),
            "one by one, each on one core": ("--way", "1", "--threads", "1", "--pool", CORES),
            "batches of 8 of like length, each on all cores": ("--way", "8", "--threads", CORES),
            "batches of 8 of like length, each on one core": ("--way", "8", "--threads", "1", "--pool", CORES),
            "batches of 32 of like length, each on all cores": ("--way", "32", "--threads", CORES),
            "batches of 32 of like length, each on one core": ("--way", "32", "--threads", "1", "--pool", CORES),
        },
        served=False,
    ),
)
