"""Who may import whom, so that a server needs no torch, a client no onnxruntime, and a model nothing but torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Beside the standard library and the room itself.
MAY_IMPORT = {
    "model": {"numpy", "safetensors", "torch"},
    "bundle": {"cryptography", "numpy", "pydantic"},
    "protos": {"google", "grpc"},
    "client": {"protos", "grpc", "numpy"},
    "export": {"model", "bundle", "numpy", "onnx", "onnx_ir", "onnxscript", "pydantic", "tokenizers", "torch"},
    "server": {
        "bundle", "cryptography", "protos", "google", "grpc", "grpc_health", "grpc_reflection", "numpy", "onnxruntime",
        "opentelemetry", "prometheus_client", "pydantic", "pydantic_settings", "tokenizers", "uvloop",
    },
    "heed": {
        "bench", "bundle", "client", "export", "grpc", "matplotlib", "model", "numpy", "protos", "pydantic", "rich",
        "server", "typer", "uvloop", "yaml",
    },
}  # fmt: skip


def imported(source: str) -> Iterator[str]:
    """The top package of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield (node.module or "").split(".")[0]


def forbidden(room: str, source: str) -> set[str]:
    return set(imported(source)) - MAY_IMPORT[room] - {room} - sys.stdlib_module_names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): forbidden(room, file.read_text("utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("server", "import torch", {"torch"}),
        ("server", "def f():\n    from export.bundle import write_bundle", {"export"}),
        ("server", "if True:\n    import client.wire as wire", {"client"}),
        ("model", "import numpy, bundle", {"bundle"}),
        ("client", "import onnxruntime, pydantic", {"onnxruntime", "pydantic"}),
        ("client", "import json\nfrom client.wire import Answer\nfrom protos import POOL", set()),
    ],
)
def test_a_forbidden_import_is_found(room: str, source: str, expected: set[str]) -> None:
    assert forbidden(room, source) == expected


def loaded_by(program: str) -> set[str]:
    """The top packages that a fresh interpreter has loaded after a program."""
    program += "\nimport sys\nprint(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize("program", ["import server.lifecycle", "import heed.commands.serve, server.lifecycle"])
def test_serving_loads_nothing_of_the_export(program: str) -> None:
    loaded = loaded_by(program)
    assert "server" in loaded
    assert loaded & {"torch", "model", "export", "transformers", "onnx", "onnxscript", "safetensors"} == set()


@pytest.mark.parametrize("command", ["verify", "inspect", "diff"])
def test_looking_at_bundles_loads_nothing_of_the_export(tiny_bundle: Path, command: str) -> None:
    bundles = [str(tiny_bundle)] * (1 + (command == "diff"))
    program = f"import sys; sys.argv = ['heed', {command!r}, *{bundles!r}, '--json']\n"
    program += "import contextlib, io\nfrom heed.main import app\n"
    program += "with contextlib.redirect_stdout(io.StringIO()):\n    app(standalone_mode=False)"
    loaded = loaded_by(program)
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "model", "export", "transformers", "onnx", "onnxscript", "safetensors"} == set()


def test_a_command_loads_nothing_of_the_others() -> None:
    loaded = loaded_by("from heed.main import app\ntry:\n    app(['call', '--help'])\nexcept SystemExit:\n    pass")
    assert "client" in loaded
    assert loaded & {"onnxruntime", "tokenizers", "matplotlib", "torch"} == set()


def test_a_client_loads_nothing_of_the_server() -> None:
    loaded = loaded_by("import client")
    assert "grpc" in loaded
    assert loaded & {"onnxruntime", "torch", "pydantic", "tokenizers", "server", "bundle", "heed"} == set()


def test_the_model_loads_nothing_else_of_ours() -> None:
    loaded = loaded_by("import model")
    assert loaded & set(MAY_IMPORT) == {"model"}
