"""Exported bundles, kept between runs: an export takes seconds, and most tests are about what a bundle does.

A bundle is kept in the user's cache folder (or in HEED_TEST_BUNDLES) under a key that covers everything it is made of:
the source (the files of a checkpoint folder, or an encoder's configuration and weights), the code that an export
imports, and the versions of the libraries. Tests of exporting itself export, and do not come here.
"""

import ast
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout

import heed.exporting
from heed.bundle.manifest import Precision
from heed.export import graph_writer, torch_to_onnx
from heed.export_verification import unprovable
from heed.model import Checkpoint, Encoder

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
KEPT = Path(os.environ.get("HEED_TEST_BUNDLES") or CACHE / "heed" / "test-bundles")
LIMIT_BYTES = 1 << 30
PACKAGES = (
    "ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "pydantic", "safetensors",
    "sympy", "tokenizers", "torch",
)  # fmt: skip
Source = Path | Encoder | Checkpoint


def export_bundle(source: Source, out: Path, name: str | None = None, precisions: Collection[Precision] = ()) -> Path:
    """Exports a model to the new folder `out`, or copies what an earlier test, process or run made of the same."""
    name = name or out.name

    def make(folder: Path) -> None:
        heed.exporting.export_bundle(source, folder, name, precisions=precisions)

    with _kept(_bundle_key(source, name, precisions), make) as kept:
        shutil.copytree(kept, out)
    return out


def export_graph(encoder: Encoder, path: Path) -> None:
    """Captures an encoder as a graph that computes all pairs, its weights beside it; or copies what was captured."""

    def make(folder: Path) -> None:
        folder.mkdir()
        torch_to_onnx.export_graph(encoder, folder / path.name)

    with _kept(_key(encoder, ("graph", path.name)), make) as kept:
        shutil.copytree(kept, path.parent, dirs_exist_ok=True)


@contextmanager
def _kept(key: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The kept folder with this key, made first if it is not there whole. Nobody removes it meanwhile."""
    kept = KEPT / key
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        digest = kept.with_suffix(".sha256")
        if not (kept.is_dir() and digest.is_file() and folder_digest(kept) == digest.read_text()):
            shutil.rmtree(kept, ignore_errors=True)
            _make(kept, digest, make)
        os.utime(digest)  # it was used now
        yield kept


def _make(kept: Path, digest: Path, make: Callable[[Path], None]) -> None:
    """Aside first: what is interrupted is not kept."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="partial-") as folder:
        make(Path(folder) / "made")
        digest.write_text(folder_digest(Path(folder) / "made"))
        (Path(folder) / "made").rename(kept)


def drop_least_used(limit: int = LIMIT_BYTES) -> None:
    """Removes the bundles that were not used for longest, until the others take at most `limit` bytes."""
    total = 0
    for digest in sorted(KEPT.glob("*.sha256"), key=lambda path: path.stat().st_mtime, reverse=True):
        kept = digest.with_suffix("")
        total += sum(path.stat().st_size for path in kept.rglob("*"))
        if total > limit:
            _drop(kept)


def _drop(kept: Path) -> None:
    try:
        with FileLock(f"{kept}.lock", timeout=0):
            kept.with_suffix(".sha256").unlink(missing_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
    except Timeout:
        pass  # another run uses it


# --- Keys ------------------------------------------------------------------------------------------------------------


def _bundle_key(source: Source, name: str, precisions: Collection[Precision]) -> str:
    # The manifest names the precisions without a device, and tests patch the length of short rows where it is used.
    dense = graph_writer.DENSE_COLUMNS  # type: ignore[attr-defined]
    return _key(source, (name, sorted(precisions), sorted(unprovable()), dense))


def _key(source: Source, asked: object) -> str:
    made_of = _folder_parts(source) if isinstance(source, Path) else _model_parts(source)
    return _digest([repr(asked).encode(), _tools().encode(), _code().encode(), *made_of])[:40]


def _folder_parts(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield from (str(path.relative_to(folder)).encode(), path.read_bytes())


def folder_digest(folder: Path) -> str:
    """Of all files below a folder, and of their names."""
    return _digest(_folder_parts(folder))


def _model_parts(model: Encoder | Checkpoint) -> Iterator[bytes]:
    checkpoint = Checkpoint(model) if isinstance(model, Encoder) else model
    encoder = checkpoint.encoder
    assert type(encoder) is Encoder, "the code of another class would be missing from the key"
    config = repr(encoder.config)
    assert "<lambda>" not in config, "the code of a function without a name would be missing from the key"
    yield re.sub(r" at 0x[0-9a-f]+", "", config).encode()  # of a function, its name stays
    yield repr((checkpoint.family, checkpoint.max_text_length, checkpoint.prompts)).encode()
    yield checkpoint.tokenizer_json() if checkpoint.tokenizer else b""
    for tensors in (encoder.named_parameters(), encoder.named_buffers()):
        for tensor_name, tensor in tensors:
            yield f"{tensor_name} {tensor.dtype} {list(tensor.shape)}".encode()
            yield tensor.detach().contiguous().numpy().tobytes()


@cache
def _tools() -> str:
    return repr([sys.version, platform.machine(), *((package, _version(package)) for package in PACKAGES)])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _code() -> str:
    """The digest of all code of heed that an export can import. The kernels take no part in an export's proof."""
    files = sorted({*imported_files("heed.exporting"), Path(__file__)})
    return _digest(part for path in files for part in (str(path.relative_to(ROOT)).encode(), path.read_bytes()))


def imported_files(module: str) -> set[Path]:
    """The files of heed that a module imports, directly or not, at its top or inside functions."""
    found: set[Path] = set()
    names = [module]
    while names:
        parts = names.pop().split(".")
        for count in range(2, len(parts) + 1):  # the packages above it are imported, too; `heed` itself is empty
            file = _file_of(parts[:count])
            if file and file not in found:
                found.add(file)
                names += _imports(file)
    return found


def _file_of(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("heed"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("heed"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()
