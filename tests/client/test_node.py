"""The program for Node, run: against real servers, and against one that is busy, secured and asks for a token."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode

from heed.client import Client
from tests.client.echo import Echo, Refusal, running
from tests.client.test_security import Authority, secured
from tests.support import Running

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "clients" / "embed.js"
SECONDS = 60  # for npm


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program, and beside it what it needs."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "@grpc/grpc-js@1", "@grpc/proto-loader@0.8"]
    try:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install @grpc/grpc-js within {SECONDS} s")
    if done.returncode:
        pytest.skip(f"npm cannot install @grpc/grpc-js: {done.stderr.strip()[-300:]}")
    shutil.copy(PROGRAM, folder)
    return folder


def run(node: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    proto = str(ROOT / "protos" / "open_inference.proto")
    return subprocess.run(
        ["node", "embed.js", *arguments],
        cwd=node, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PROTO": proto} | variables,
    )  # fmt: skip


def vectors_of(done: subprocess.CompletedProcess[str]) -> np.ndarray:
    assert done.returncode == 0, done.stderr
    return np.array([json.loads(line) for line in done.stdout.splitlines()], np.float32)


def test_it_gets_the_vectors_that_python_gets(node: Path, tiny_server: Running) -> None:
    texts = ["the quick fox", "naïve 🦊"]
    with Client(tiny_server.address, "tiny") as client:
        np.testing.assert_array_equal(vectors_of(run(node, tiny_server.address, "tiny", *texts)), client.embed(texts))


def test_it_comes_again_when_a_busy_server_says_and_goes_on_to_another(node: Path) -> None:
    busy = [Refusal(StatusCode.RESOURCE_EXHAUSTED, "50"), Refusal(StatusCode.UNAVAILABLE)]
    first, second = Echo(busy), Echo(list(busy))
    with running(first) as one, running(second) as other:
        assert vectors_of(run(node, f"ipv4:{one},{other}", "echo", "7", "8")).tolist() == [[7], [8]]


def test_its_token_goes_by_tls_alone(node: Path, tmp_path: Path) -> None:
    authority, echo = Authority(tmp_path), Echo()
    with running(echo, credentials=secured(authority, "localhost")) as ours:
        address = ours.replace("127.0.0.1", "localhost")
        assert vectors_of(run(node, address, "echo", "7", CA=str(authority.file), TOKEN="secret")).tolist() == [[7]]
        refused = run(node, address, "echo", "7", TOKEN="secret")
    assert echo.tokens == ["Bearer secret"]
    assert (refused.returncode, refused.stderr) == (1, "TOKEN would travel in plain text: set CA\n")
