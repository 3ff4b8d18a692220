import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heed.console import err, fail, out
from heed.reports import report_table, summary

if TYPE_CHECKING:
    from bundle.contract import Finding


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare a bundle's answers with the PyTorch reference's, on every case of its contract.

    The answers come from the very runtime that serves; the reference's were computed in float64 when the bundle was
    made. Needs no network and no torch. Exit code 0: equal within the budget; 1: not; 2: the bundle cannot be used.
    """
    from rich.progress import track

    from bundle import BundleError
    from bundle.contract import Report
    from bundle.digests import check_digests
    from server.errors import HeedError
    from server.model import Model

    if device not in ("auto", "cpu", "cuda"):
        fail(f"--device {device} is none of auto, cpu, cuda")
    try:
        check_digests(bundle)
        model = Model(bundle, device)  # type: ignore[arg-type]  # checked above
        findings = model.check_contract(everything=True)
        report = Report(list(track(findings, "comparing", console=err, transient=True)))
    except (BundleError, HeedError, OSError) as error:
        fail(error)
    if as_json:
        content = {"bundle": model.manifest.name, "digest": model.digest, "provider": model.runtime.provider}
        rows = [_row(finding) for finding in report.findings]
        print(json.dumps(content | {"holds": report.holds, "findings": rows}, indent=2))
    else:
        out.print(report_table(report.findings))
        out.print(f"{model.manifest.name} on {model.runtime.provider}: {summary(report)}")
    raise typer.Exit(0 if report.holds else 1)


def _row(finding: "Finding") -> dict[str, object]:
    """JSON has no infinity: no error stands where there was no usable answer."""
    error = finding.error if math.isfinite(finding.error) else None
    return asdict(finding) | {"error": error, "holds": finding.holds}
