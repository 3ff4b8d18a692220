"""`onnxruntime-gpu` on a machine without CUDA: it imports, lists CUDA, and would serve on the CPU in silence.

It runs in a virtual environment of its own, because both packages provide the module `onnxruntime`.
"""

import ctypes
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from heed.client import Client
from tests.support import free_port, is_serving

pytestmark = pytest.mark.long


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def gpu_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that has `onnxruntime-gpu` before everything that this one has."""
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver; the tests are about one without")
    folder = tmp_path_factory.mktemp("gpu-environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    package = f"onnxruntime-gpu=={version('onnxruntime')}"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", package]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{package} cannot be installed: {done.stderr[-300:]}")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "after.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


def serve(python: str, bundle: Path, device: str, port: int) -> "subprocess.Popen[str]":
    command = [
        python,
        "-m",
        "heed",
        "serve",
        str(bundle),
        "--device",
        device,
        "--port",
        str(port),
        "--metrics-port",
        "-1",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def served_by_auto(gpu_python: str, tiny_bundle: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    port = free_port()
    process = serve(gpu_python, tiny_bundle, "auto", port)
    try:
        yield f"127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def test_the_environment_really_has_the_gpu_package(gpu_python: str) -> None:
    program = "import onnxruntime; print(onnxruntime.get_available_providers())"
    listed = subprocess.run([gpu_python, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "CUDAExecutionProvider" in listed


def test_device_cuda_stops_with_the_reason(gpu_python: str, tiny_bundle: Path) -> None:
    process = serve(gpu_python, tiny_bundle, "cuda", free_port())
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "CUDA cannot be used: there is no NVIDIA driver here" in " ".join(output.split())


def test_device_auto_serves_on_the_cpu_and_says_so(served_by_auto: "tuple[str, subprocess.Popen[str]]") -> None:
    address, process = served_by_auto
    while not is_serving(address):
        assert process.poll() is None
    with Client(address, "tiny") as client:
        assert client.infer({"text": ["the fox"]}).provider == "CPUExecutionProvider"
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "runs on CPUExecutionProvider (CUDA cannot be used: there is no NVIDIA driver here" in " ".join(
        output.split()
    )
