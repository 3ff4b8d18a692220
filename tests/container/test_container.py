"""The image of the Dockerfile, built and run with docker, podman or buildah, whichever is there.

HEED_TEST_IMAGE names an image to test instead of building one, PYTHON_IMAGE another base to build on.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from heed.client import Client
from tests.support import free_port

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
BUNDLE = "/models/minilm"


def command_output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def is_usable(tool: str) -> bool:
    try:
        return subprocess.run([tool, "info"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def tool() -> str:
    for tool in ("docker", "podman", "buildah"):
        if is_usable(tool):
            return tool
    pytest.skip("there is no docker with a running engine, no podman and no buildah here")


@pytest.fixture(scope="module")
def image(tool: str) -> str:
    if given := os.environ.get("HEED_TEST_IMAGE"):
        return given
    command_output(str(ROOT / "scripts" / "image"), "--target", "cpu", "-t", "localhost/heed:test")
    return "localhost/heed:test"


@dataclass(frozen=True)
class Container:
    """A server in a container, and how to run a command beside it."""

    address: str
    process: subprocess.Popen[str]
    log: Path
    run: Callable[..., subprocess.CompletedProcess[str]]
    terminate: Callable[[], None]

    def output(self, *command: str) -> str:
        return self.run(*command).stdout.strip()

    def is_healthy(self) -> bool:
        return self.run("python", "-m", "heed.server.transport.healthcheck").returncode == 0

    def wait_until_healthy(self) -> None:
        until = time.monotonic() + 60
        while not self.is_healthy():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the server is not ready:\n{self.log.read_text()}")
            time.sleep(0.2)


def start_with_engine(tool: str, image: str, bundle: Path, log: Path) -> Container:
    """As docs/deployment.md runs it: read-only, without any privilege. The client hands SIGTERM on to process 1."""
    port = free_port()
    name = f"heed-test-{port}"
    options = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    options += ["-p", f"127.0.0.1:{port}:8001", "-v", f"{bundle}:{BUNDLE}:ro"]
    command = [tool, "run", "--rm", "--name", name, *options, image, "serve", BUNDLE]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tool, "exec", name, *command], capture_output=True, text=True, check=False)

    return Container(f"127.0.0.1:{port}", process, log, run, process.terminate)


def start_with_buildah(container: str, bundle: Path, log: Path) -> Container:
    """On this machine's network, hence at a port of its own, and `buildah run` ignores the image's entry point.

    It does not hand signals on either, but processes have the same ids inside and outside.
    """
    port = free_port()
    options = ["--env", f"HEED_PORT={port}", "--env", "HEED_METRICS_PORT=0", "-v", f"{bundle}:{BUNDLE}:ro"]
    with log.open("w") as output:
        command = ["buildah", "run", *options, container, "--", "sh", "-c", f"echo $$; exec heed serve {BUNDLE}"]
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        whole = ["buildah", "run", *options, container, "--", *command]
        return subprocess.run(whole, capture_output=True, text=True, check=False)

    def terminate() -> None:
        os.kill(int(log.read_text().split()[0]), signal.SIGTERM)

    return Container(f"127.0.0.1:{port}", process, log, run, terminate)


@pytest.fixture
def container(tool: str, image: str, minilm_bundle: Path, tmp_path: Path) -> Iterator[Container]:
    log = tmp_path / "log"
    if tool == "buildah":
        name = command_output("buildah", "from", image)
        started = start_with_buildah(name, minilm_bundle, log)
    else:
        started = start_with_engine(tool, image, minilm_bundle, log)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.terminate()
            started.process.wait(60)
        if tool == "buildah":
            command_output("buildah", "rm", name)


def test_it_serves_without_root_and_torch_and_stops_when_asked(container: Container, minilm_bundle: Path) -> None:
    container.wait_until_healthy()
    with Client(container.address, "minilm") as client:
        vectors = client.embed(["hello", "world"])
    assert vectors.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    assert container.output("id", "-u") == "10001"
    assert "No module named 'torch'" in container.run("python", "-c", "import torch").stderr
    assert "No module named pip" in container.run("python", "-m", "pip").stderr

    container.terminate()
    assert container.process.wait(60) == 0, container.log.read_text()
    assert container.log.read_text().rstrip().endswith("stopped")
