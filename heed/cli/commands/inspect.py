import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from heed.cli.console import fail, out
from heed.cli.reports import error_text

if TYPE_CHECKING:
    from heed.bundle import Manifest
    from heed.bundle.contract import Finding
    from heed.bundle.manifest import TensorSpec

LARGEST = 600e6  # bytes of a bundle up to which errors are measured
SHOWN_LABELS = 12


@dataclass(frozen=True)
class Exactness:
    """How far one precision's answers are from the reference's on this machine; `why_not` if it was not measured."""

    proven: bool  # at the export
    provider: str = ""
    compared: int = 0
    worst: "Finding | None" = None
    why_not: str = ""


@dataclass(frozen=True)
class Inspected:
    """What the command found out about a bundle."""

    manifest: "Manifest"
    digest: str
    damage: str  # which file is not as its digest says; empty if none
    signed: bool
    exactness: dict[str, Exactness]  # by precision
    files: dict[str, int]  # bytes
    shared: dict[str, list[str]]  # the graphs that read a file of weights

    @property
    def size(self) -> int:
        return sum(self.files.values())


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compute nothing: leave out how exact it is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a bundle is: what goes in, what comes out, how exact, how large, and where it comes from.

    How exact is measured here, with the cases that a server checks when it starts; heed verify has them all.

    Exit code 0: it is as it was made. 1: files are altered, or an answer is not the reference's. 2: it is no bundle.
    """
    from heed.bundle import BundleError

    try:
        found = _inspected(bundle, quick)
    except (BundleError, OSError) as error:
        fail(error)
    if as_json:
        print(json.dumps(_content(found), indent=2, ensure_ascii=False))
    else:
        _show(found, bundle)
    holds = all(each.worst is None or each.worst.holds for each in found.exactness.values())
    raise typer.Exit(0 if holds and not found.damage else 1)


def _inspected(folder: Path, quick: bool) -> Inspected:
    from heed.bundle import read_manifest
    from heed.bundle.digests import DIGESTS, SIGNATURE, bundle_digest

    manifest = read_manifest(folder)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    damage = _damage(folder)
    why_not = "its files are altered" if damage else "not asked for" if quick else ""
    if not why_not and sum(files.values()) > LARGEST:
        why_not = "it is large"
    return Inspected(
        manifest,
        bundle_digest(folder) if DIGESTS in files else "",
        damage,
        SIGNATURE in files,
        {precision: _exactness(folder, manifest, precision, why_not) for precision in manifest.precisions},
        files,
        _shared(folder, manifest, files),
    )


def _damage(folder: Path) -> str:
    from heed.bundle import BundleError
    from heed.bundle.digests import check_digests

    try:
        check_digests(folder)
    except BundleError as error:
        return str(error)
    return ""


def _exactness(folder: Path, manifest: "Manifest", precision: str, why_not: str) -> Exactness:
    at_export = manifest.is_proven(precision)
    if why_not:
        return Exactness(at_export, why_not=why_not)
    from heed.bundle import BundleError  # here: what computes nothing needs no onnxruntime
    from heed.server.errors import HeedError
    from heed.server.repository.verification import load_and_compare

    try:
        model, report = load_and_compare(folder, precision=precision)
    except (BundleError, HeedError) as error:
        return Exactness(at_export, why_not=str(error))
    return Exactness(at_export, model.session.provider, len(report.findings), report.worst)


def _shared(folder: Path, manifest: "Manifest", files: dict[str, int]) -> dict[str, list[str]]:
    """Which graphs refer to a file of weights. A graph without its weights is small enough to be read for that."""
    graphs = {graph.file: (folder / graph.file).read_bytes() for graph in manifest.graphs if graph.file in files}
    weights = [name for name in files if name.endswith(".data")]
    return {name: [graph for graph, content in graphs.items() if name.encode() in content] for name in weights}


def _content(found: Inspected) -> dict[str, object]:
    manifest = found.manifest.model_dump()
    del manifest["provenance"]
    return {
        **manifest,
        "digest": found.digest,
        "intact": not found.damage,
        "damage": found.damage,
        "signed": found.signed,
        "exactness": {precision: _exactness_content(each) for precision, each in found.exactness.items()},
        "bytes": found.size,
        "files": found.files,
        "weights": found.shared,
        "provenance": found.manifest.provenance.model_dump(),
    }


def _exactness_content(each: Exactness) -> dict[str, object]:
    content = asdict(each)
    if each.worst and not math.isfinite(each.worst.error):  # JSON has no infinity
        content["worst"]["error"] = None
    return content


def _show(found: Inspected, folder: Path) -> None:
    manifest = found.manifest
    about = [manifest.task.replace("_", " "), manifest.provenance.family, f"version {manifest.version}"]
    out.print(f"[bold]{escape(manifest.name)}[/]  {escape(', '.join(about))}")
    out.print(f"{found.digest or 'no digests'}  {_integrity(found)}", soft_wrap=True)
    _show_tensors("takes [dim](B rows, L tokens in each)[/]", manifest.inputs)
    _show_tensors("gives", manifest.outputs)
    out.print()
    out.print(_rows(_limits(manifest) | _labels(manifest) | _prompts(manifest) | _exactness_rows(found)))
    out.print(f"[dim]every case: heed verify {escape(str(folder))}[/]", soft_wrap=True)
    _show_files(found)
    _show_provenance(manifest)


def _integrity(found: Inspected) -> str:
    if found.damage:
        return f"[bold red]✗ {escape(found.damage)}[/]"
    return "[green]✓[/] every file is as it was made" + ("; signed" if found.signed else "")


def _show_tensors(title: str, specs: "list[TensorSpec]") -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=False, padding=(0, 2, 0, 0))
    for spec in specs:
        optional = " [dim](optional)[/]" if spec.optional else ""
        table.add_row(f"  {escape(spec.name)}", spec.datatype, escape(spec.letters), f"{escape(spec.help)}{optional}")
    out.print(f"\n[bold]{title}[/]")
    out.print(table)


def _rows(rows: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[bold]{escape(name)}[/]", value)
    return table


def _limits(manifest: "Manifest") -> dict[str, str]:
    limits = manifest.limits
    parts = [f"{limits.length} tokens in a row"]
    if limits.text_length:
        parts.append(f"{limits.text_length} of a text")
    if limits.vocabulary:
        parts.append(f"ids up to {limits.vocabulary - 1}")
    return {"limits": ", ".join(parts)}


def _labels(manifest: "Manifest") -> dict[str, str]:
    if not manifest.labels:
        return {}
    more = f" and {len(manifest.labels) - SHOWN_LABELS} more" if len(manifest.labels) > SHOWN_LABELS else ""
    made = "the logits" if manifest.label_activation == "none" else f"{manifest.label_activation} of logits"
    return {"labels": escape(", ".join(manifest.labels[:SHOWN_LABELS])) + more, "scores": made}


def _prompts(manifest: "Manifest") -> dict[str, str]:
    """Each in quotes, for spaces at its end matter."""
    lines = [
        f"{escape(name)} [dim]{escape(json.dumps(text, ensure_ascii=False))}[/]"
        + " (default)" * (name == manifest.default_prompt_name)
        for name, text in manifest.prompts.items()
    ]
    return {"prompts": "\n".join(lines)} if lines else {}


def _exactness_rows(found: Inspected) -> dict[str, str]:
    return {f"exact, {precision}": _exactness_text(each) for precision, each in found.exactness.items()}


def _exactness_text(each: Exactness) -> str:
    if each.worst is None:
        proven = "proven at the export" if each.proven else "[yellow]not proven yet[/]"
        return f"{proven}; not measured here: {escape(each.why_not)}"
    worst = each.worst
    sign = "[green]✓[/]" if worst.holds else "[bold red]✗[/]"
    of = " of 1 - cosine" if worst.measure == "cosine" else ""
    return (
        f"{sign} {error_text(worst)} at most, {worst.budget:.0e}{of} allowed "
        f"[dim]({each.compared} comparisons on {each.provider}; worst: {worst.output} in {escape(worst.case)})[/]"
    )


def size_text(count: int) -> str:
    """A number of bytes in a unit that people read."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _show_files(found: Inspected) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for name, size in found.files.items():
        table.add_row(f"  {escape(name)}", size_text(size), _purpose(found, name))
    out.print(f"\n[bold]files[/] {size_text(found.size)}")
    out.print(table)


def _purpose(found: Inspected, name: str) -> str:
    """What a file is for, where its name does not tell."""
    from heed.bundle.digests import REPORT

    if name == REPORT:
        return "[dim]what the export measured: open it in a browser[/]"
    if name in found.shared:
        return f"[dim]weights, once for {escape(', '.join(found.shared[name]))}[/]"
    for graph in found.manifest.graphs:
        if graph.file == name:
            rows = "" if graph.longest is None else f", rows of up to {graph.longest} columns"
            rows += ", CUDA's own operators for rows without holes" * graph.fused
            return f"[dim]{graph.precision}: {escape(', '.join(graph.outputs))}{rows}[/]"
    return ""


def _show_provenance(manifest: "Manifest") -> None:
    provenance = manifest.provenance
    rows = {
        "from": "\n".join(f"{escape(name)} [dim]{digest[:12]}…[/]" for name, digest in provenance.source.items()),
        "with": escape(", ".join(f"{tool} {version}" for tool, version in provenance.tools.items())),
        "by": escape(provenance.command),
    }
    if provenance.ignored_keys:
        rows["ignored"] = f"[yellow]{escape(', '.join(provenance.ignored_keys))}[/] of config.json, by --ignore-key"
    out.print()
    out.print(_rows(rows))
