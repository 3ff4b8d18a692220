import sys
from pathlib import Path
from typing import Annotated

import typer

from heed.console import err, fail, out, stages
from heed.interrupts import stopping_at_once
from heed.reports import summary


def _abandon() -> bool:
    """Before the module is there, nothing was written."""
    aside = sys.modules.get("export.aside")
    return aside is None or not hasattr(aside, "abandon") or bool(aside.abandon())


@stopping_at_once(_abandon)
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder (config.json, *.safetensors, tokenizer.json), or package.module:factory."
        ),
    ],
    bundle: Annotated[Path, typer.Argument(metavar="OUT", help="Bundle folder to write.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name for callers; OUT's folder name by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the bundle with this Ed25519 private key (PEM).")
    ] = None,
) -> None:
    """Turn a model into a bundle, with the proof that it answers as the PyTorch reference does.

    SOURCE is a folder in the Hugging Face layout or a sentence-transformers folder. Families: BERT (MiniLM, E5, BGE,
    GTE are BERT), RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA, MPNet, ModernBERT, Longformer, Big Bird, ViT;
    encoders, sequence and token classifiers, cross-encoders. Weights come from safetensors, never from pickles.

    Or SOURCE is a model of your own: package.module:factory names a function that returns a model.Encoder (with its
    tokenizer: a model.Checkpoint).

    The bundle is written aside, compared with the reference on every case of its contract, and only then put in
    place: what exists under OUT is proven. Exit code 2 and nothing written if it cannot be; 130 at Ctrl-C.
    """
    from bundle import BundleError

    with stages("starting PyTorch") as step:
        try:
            from export.bundle import ExportError
            from heed.exporting import export_bundle, own_model
            from model import CheckpointError
        except ModuleNotFoundError as error:
            fail(f"{error.name} is not installed; exporting needs two extras: pip install 'heed[cpu,export]'")

        try:
            own = ":" in source and not Path(source).exists()
            report = export_bundle(own_model(source) if own else Path(source), bundle, name, force, step, sign)
        except (CheckpointError, ExportError, BundleError, OSError) as error:
            fail(error)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    err.print(summary(report))
    out.print(f"{bundle} [dim]({size / 1e6:.0f} MB)[/]")
    err.print(f"[dim]next: heed serve {bundle}[/]")
