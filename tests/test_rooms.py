"""Who may import whom, so that a server needs no torch, a client no onnxruntime, and a model nothing but torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# For each room: the rooms and the libraries that it may import, beside itself and the standard library. The longest
# name counts: `server/scheduling` is a room in the room `server`. What stands for `server/x` is heed.server.x.
MAY_IMPORT = {
    "model": {"numpy", "safetensors", "torch"},
    "heed/bundle": {"cryptography", "numpy", "pydantic"},
    "heed/protos": {"google", "grpc"},
    "heed/client": {"heed.protos", "grpc", "numpy"},
    "heed/load": {"heed.client", "heed.protos", "grpc", "numpy"},
    "export": {
        "heed.model", "heed.bundle", "numpy", "onnx", "onnx_ir", "onnxscript", "pydantic", "tokenizers", "torch",
    },
    # The server's rooms by stage, from the top down.
    "server": {"heed.server", "heed.bundle", "heed.protos", "grpc", "grpc_health", "pydantic"},
    "server/protocols": {
        "heed.server.transport", "heed.server.repository", "heed.server.telemetry", "heed.server.scheduling",
        "heed.server.engine", "heed.server.requests", "heed.server.settings", "heed.server.errors",
        "heed.bundle", "heed.protos", "google", "grpc", "grpc_health", "numpy",
    },
    "server/transport": {
        "heed.server.settings", "heed.server.environment", "heed.server.errors", "heed.protos", "cryptography",
        "google", "grpc", "grpc_health", "grpc_reflection",
    },
    "server/repository": {
        "heed.server.telemetry", "heed.server.scheduling", "heed.server.engine", "heed.server.requests",
        "heed.server.settings", "heed.server.errors", "heed.bundle", "numpy",
    },
    "server/telemetry": {
        "heed.extras", "heed.server.settings", "heed.server.environment", "heed.server.errors", "heed.bundle", "grpc",
        "onnxruntime",        "opentelemetry", "prometheus_client",
    },
    "server/scheduling": {"heed.server.errors", "numpy"},
    "server/engine": {
        "heed.server.requests", "heed.server.errors", "heed.bundle", "heed.protos", "google", "numpy", "onnxruntime",
    },
    "server/requests": {"heed.server.settings", "heed.server.errors", "heed.bundle", "numpy", "tokenizers"},
    "heed/cli": {
        "heed", "grpc", "matplotlib", "numpy", "pydantic", "rich", "sentence_transformers", "torch", "transformers",
        "typer", "uvloop", "yaml",
    },
    "heed": {"heed"},
}  # fmt: skip


def room_of(file: Path) -> str:
    """The room of a file, by its path below the repository's top."""
    return next(str(folder) for folder in file.parents if str(folder) in MAY_IMPORT)


def modules_of(room: str) -> str:
    """The name that a room is imported by."""
    return ".".join(["heed", *(part for part in room.split("/") if part != "heed")])


def imported(source: str) -> Iterator[str]:
    """Every import in a file, those inside functions and those for types alone included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield node.module or ""


def forbidden(room: str, source: str) -> set[str]:
    allowed = MAY_IMPORT[room] | {modules_of(room)}

    def may(name: str) -> bool:
        parts = name.split(".")
        prefixes = {".".join(parts[: count + 1]) for count in range(len(parts))}
        return bool(prefixes & allowed) or parts[0] in sys.stdlib_module_names

    return {name for name in imported(source) if not may(name)}


FILES = [
    file.relative_to(ROOT)
    for top in ("heed", "model", "export", "server")
    for file in sorted((ROOT / top).rglob("*.py"))
    if not file.name.endswith(("_pb2.py", "_pb2_grpc.py"))
]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = [file for file in FILES if room_of(file) == room]
    assert files
    found = {str(file): forbidden(room, (ROOT / file).read_text("utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("folder", ["bench", "examples", "tests"])
def test_what_is_installed_is_imported_by_its_installed_name(folder: str) -> None:
    """In a checkout `import model` works, too, and would be a second copy of `heed.model`."""
    tops = {"model", "export", "server", "protos", "client", "bundle"}
    files = sorted((ROOT / folder).rglob("*.py"))
    assert {str(file) for file in files if {name.split(".")[0] for name in imported(file.read_text())} & tops} == set()


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("server/repository", "import torch", {"torch"}),
        (
            "server/engine",
            "def f():\n    from heed.export.graph_writer import write_graphs",
            {"heed.export.graph_writer"},
        ),
        ("server/protocols", "if True:\n    import heed.client.wire as wire", {"heed.client.wire"}),
        ("server/scheduling", "from heed.server.protocols.tei import embed", {"heed.server.protocols.tei"}),
        ("model", "import numpy, heed.bundle", {"heed.bundle"}),
        ("model", "from model.attention import Attention", {"model.attention"}),
        ("heed/client", "import onnxruntime, pydantic", {"onnxruntime", "pydantic"}),
        ("heed/client", "import json\nfrom heed.client.wire import Answer\nfrom heed.protos import POOL", set()),
    ],
)
def test_a_forbidden_import_is_found(room: str, source: str, expected: set[str]) -> None:
    assert forbidden(room, source) == expected


def loaded_by(program: str) -> set[str]:
    """The top packages that a fresh interpreter has loaded after a program, and heed's own rooms."""
    program += "\nimport sys\nprint(*{name.split('.')[0] for name in sys.modules})"
    program += "\nprint(*{'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith('heed.')})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "program", ["import heed.server.lifecycle", "import heed.cli.commands.serve, heed.server.lifecycle"]
)
def test_serving_loads_nothing_of_the_export(program: str) -> None:
    loaded = loaded_by(program)
    assert "heed.server" in loaded
    assert loaded & {"torch", "heed.model", "heed.export", "transformers", "onnx", "onnxscript", "safetensors"} == set()


@pytest.mark.parametrize("command", ["verify", "inspect", "diff"])
def test_looking_at_bundles_loads_nothing_of_the_export(tiny_bundle: Path, command: str) -> None:
    bundles = [str(tiny_bundle)] * (1 + (command == "diff"))
    program = f"import sys; sys.argv = ['heed', {command!r}, *{bundles!r}, '--json']\n"
    program += "import contextlib, io\nfrom heed.cli.main import app\n"
    program += "with contextlib.redirect_stdout(io.StringIO()):\n    app(standalone_mode=False)"
    loaded = loaded_by(program)
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "heed.model", "heed.export", "transformers", "onnx", "onnxscript", "safetensors"} == set()


def test_a_command_loads_nothing_of_the_others() -> None:
    loaded = loaded_by("from heed.cli.main import app\ntry:\n    app(['call', '--help'])\nexcept SystemExit:\n    pass")
    assert "heed.client" in loaded
    assert loaded & {"onnxruntime", "tokenizers", "matplotlib", "torch"} == set()


def test_scheduling_needs_neither_a_model_nor_grpc() -> None:
    loaded = loaded_by("import heed.server.scheduling.scheduler, heed.server.scheduling.batching")
    assert "heed.server" in loaded
    assert loaded & {"grpc", "onnxruntime", "pydantic", "tokenizers", "heed.bundle"} == set()


def test_a_client_loads_nothing_of_the_server() -> None:
    loaded = loaded_by("from heed import Client")
    assert "grpc" in loaded
    assert (
        loaded & {"onnxruntime", "torch", "pydantic", "tokenizers", "heed.server", "heed.bundle", "heed.cli"} == set()
    )


def test_the_model_loads_nothing_else_of_ours() -> None:
    loaded = loaded_by("import heed.model")
    assert {name for name in loaded if name.startswith("heed.")} == {"heed.extras", "heed.model"}
