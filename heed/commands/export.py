from pathlib import Path
from typing import Annotated

import typer

from heed.console import err, fail, out, stages
from heed.reports import summary


def export(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder: config.json, *.safetensors, tokenizer.json.")],
    bundle: Annotated[Path, typer.Argument(metavar="OUT", help="Bundle folder to write.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name for callers; OUT's folder name by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Turn a checkpoint into a bundle, with the proof that it answers as the PyTorch reference does.

    Reads folders in the Hugging Face layout and sentence-transformers folders, of the families BERT (MiniLM, E5, BGE,
    GTE are BERT), RoBERTa, XLM-RoBERTa and CamemBERT. Weights come from safetensors, never from pickles.

    The bundle is written aside, compared with the reference on every case of its contract, and only then put in
    place: what exists under OUT is proven. Exit code 2 and nothing written if it cannot be.
    """
    from bundle import BundleError
    from bundle.contract import Report

    with stages("starting PyTorch") as step:
        try:
            from export.bundle import ExportError, write_bundle
            from model import CheckpointError
            from server.model import Model
        except ModuleNotFoundError as error:
            fail(f"{error.name} is not installed; exporting needs two extras: pip install 'heed[cpu,export]'")

        def prove(folder: Path) -> Report:
            return Report(list(Model(folder, "cpu").check_contract(everything=True)))

        try:
            report = write_bundle(source, bundle, prove, name, force, step)
        except (CheckpointError, ExportError, BundleError, OSError) as error:
            fail(error)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    err.print(summary(report))
    out.print(f"{bundle} [dim]({size / 1e6:.0f} MB)[/]")
    err.print(f"[dim]next: heed serve {bundle}[/]")
