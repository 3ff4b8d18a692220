"""Exporting from Python: what `heed export` does, for checkpoint folders and for models of one's own."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from bundle.contract import Report
from export.bundle import ExportError, write_bundle
from model import Checkpoint, Encoder
from server.model import Model


def prove(folder: Path) -> Report:
    """Compares every graph of a bundle with its contract, as a server would run it on the CPU."""
    return Report(list(Model(folder, "cpu").check_contract(everything=True)))


def export_bundle(
    source: Path | str | Encoder | Checkpoint,
    out: Path | str,
    name: str | None = None,
    force: bool = False,
    step: Callable[[str], None] = lambda _: None,
    key: Path | None = None,
) -> Report:
    """Writes a model to the bundle folder `out`, proven equal to the reference.

    Args:
        source: a checkpoint folder, an encoder of one's own, or `Checkpoint(encoder, tokenizer=...)` for one that
            takes texts.
        name: the model's name for callers; that of the folder `out` by default.
        force: replace `out` if it exists.
        step: is told what happens next.
        key: an Ed25519 private key in PEM to sign the bundle with.

    Raises:
        CheckpointError, ExportError, BundleError: see `write_bundle`; nothing is written then.
    """
    if isinstance(source, Encoder):
        source = Checkpoint(source.eval())
    elif isinstance(source, str):
        source = Path(source)
    return write_bundle(source, Path(out), prove, name, force, step, key)


def own_model(reference: str) -> Checkpoint:
    """The model that `package.module:factory` makes. The module is looked for in the current folder, too.

    Raises:
        ExportError: it cannot be imported, or makes something else.
    """
    module_name, _, factory_name = reference.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ExportError(f"{module_name} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ExportError(f"{module_name} has no function {factory_name!r}")
    made = factory()
    if isinstance(made, Encoder):
        return Checkpoint(made.eval())
    if isinstance(made, Checkpoint):
        return made
    raise ExportError(f"{reference} made {type(made).__name__}, expected a model.Encoder or a model.Checkpoint")
