import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.markup import escape

from heed.cli.console import err, fail, out, stages
from heed.cli.interrupts import stopping_at_once
from heed.cli.reports import summary

if TYPE_CHECKING:
    from heed.bundle.contract import Report
    from heed.bundle.manifest import Precision


def _discard() -> bool:
    """Removes what is half-written; nothing is before the module that writes is imported."""
    module = sys.modules.get("heed.export.atomic_folder")
    return module is None or not hasattr(module, "discard_partial_folder") or bool(module.discard_partial_folder())


def _precisions(asked: str) -> "list[Precision]":
    from heed.bundle.manifest import Precision

    known = get_args(Precision)
    names = [name.strip() for name in asked.split(",")]
    if unknown := [name for name in names if name not in known]:
        fail(f"--precision {unknown[0]} is none of {', '.join(known)}")
    return [precision for precision in known if precision in names]


def _say(report: "Report") -> None:
    """What was proven, and what was not."""
    parts = report.by_precision()
    for precision, part in parts.items():
        err.print(f"{precision}: {summary(part)}" if len(parts) > 1 else summary(part))
    for precision, reason in report.unproven.items():
        err.print(f"{precision}: [yellow]not proven here[/]. {escape(reason)}", soft_wrap=True)


@stopping_at_once(_discard)
def export(
    source: Annotated[
        str,
        typer.Argument(help="Checkpoint folder (config.json, weights, tokenizer.json), or package.module:factory."),
    ],
    bundle: Annotated[Path, typer.Argument(metavar="OUT", help="Bundle folder to write.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name for callers; OUT's folder name by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a bundle.")] = False,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the bundle with this Ed25519 private key (PEM).")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, and with commas fp16 (for CUDA) and int8 (for the CPU); fp32 is always there.")
    ] = "fp32",
    max_length: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="The longest row that callers may send, if shorter than the model takes."),
    ] = None,
    ignore_key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Pass over a key of config.json that you know to be harmless; repeatable."),
    ] = None,
) -> None:
    """Turn a model into a bundle, with the proof that it answers as the PyTorch reference does.

    SOURCE is a folder in the Hugging Face layout or a sentence-transformers folder. Families: BERT (MiniLM, E5, BGE
    are BERT), RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA, MPNet, ModernBERT, Nomic BERT, GTE, DeBERTa,
    Qwen 2 and 3, Gemma 3, EuroBERT, JinaBERT v2, Longformer, Big Bird, ViT; encoders, sequence and token classifiers,
    cross-encoders. Weights come from safetensors, or from a pytorch_model.bin that holds nothing but tensors; code
    that comes with a folder is never run.

    Every length that a model takes is proven, which takes long where it is thousands of tokens. --max-length is for
    servers that need less: answers are the same, and longer rows are refused.

    A key of config.json that might change the answers, and that heed does not know, is refused by name. --ignore-key
    goes on without it; the manifest records it.

    Or SOURCE is a model of your own: package.module:factory names a function that returns a heed.model.Encoder (with
    its tokenizer: a heed.model.Checkpoint).

    The bundle is written beside OUT, compared with the reference on every case of its contract, and only then
    renamed to OUT: what exists there is proven. Exit code 2 and nothing written if it cannot be; 130 at Ctrl-C.
    """
    from heed.bundle import BundleError

    precisions = _precisions(precision)
    notes: list[str] = []
    own = ":" in source and not Path(source).exists()
    if not own and not Path(source).is_dir():
        fail(
            f"{source} is not a folder, and heed downloads nothing; fetch the checkpoint first (hf download NAME "
            "--local-dir FOLDER), then export FOLDER"
        )
    with stages("starting PyTorch") as shown:
        from heed.exporting import ExportError, export_bundle, own_model
        from heed.model import CheckpointError

        try:
            model = own_model(source) if own else Path(source)
            report = export_bundle(
                model,
                bundle,
                name,
                force,
                key=sign,
                precisions=precisions,
                ignore_keys=ignore_key or (),
                max_length=max_length,
                step=shown.step,
                note=notes.append,
                progress=shown.progress,
            )
        except (CheckpointError, ExportError, BundleError, OSError) as error:
            fail(error)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    for note in notes:
        err.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    _say(report)
    out.print(f"{bundle} [dim]({size / 1e6:.0f} MB)[/]")
    err.print(f"[dim]next: heed serve {bundle}[/]")
