import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape

from heed.cli.console import err, fail, out
from heed.cli.reports import report_table, summary
from heed.cli.server_options import ServerOptions, with_server_options

if TYPE_CHECKING:
    from heed.bundle import Manifest
    from heed.bundle.contract import Finding, Report
    from heed.cli.verify_endpoint import Endpoint, OtherBundle


@with_server_options
def verify(
    *,
    server: ServerOptions,
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto, which is the default.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8, or all that the bundle has, which is the default.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask a running server instead of computing here.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name at the endpoint; the bundle's own by default.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the endpoint to be ready, and for each of its answers.")
    ] = 60.0,
    signature: Annotated[
        Path | None, typer.Option(metavar="PUBKEY", help="First see that this Ed25519 key's owner signed it (PEM).")
    ] = None,
    kernels: Annotated[bool, typer.Option(help="As `heed serve` has it: heed's own kernels where they can be.")] = True,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The checkpoint: compare with what transformers itself makes of it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare a bundle's answers with the PyTorch reference's, on every case of its contract.

    The answers come from the very runtime that serves; the reference's were computed in float64 when the bundle was
    made. Needs no network and no torch. With --endpoint a running server is asked, which must serve this very bundle.

    With --against the answers are those of transformers (and sentence-transformers), where they are installed, to the
    contract's inputs: an implementation that heed has no part in, and its tokenizer.

    Every precision is compared on the device that it is for; where this machine has none, that is said.

    Exit code 0: every answer is within its budget; float32's is that of rounding, int8's and float16's are wider. 1:
    one is not, or the endpoint serves another bundle. 2: it could not be compared.
    """
    if signature is not None:
        _check_signature(bundle, signature)
    if against is not None and endpoint is not None:
        fail("--against is for what is computed here; heed verify --endpoint compares with the contract")
    if against is not None:
        proof = _beside_transformers(bundle, against, device or "cpu", precision or "fp32", kernels)
    elif endpoint is None:
        proof = _offline(bundle, device or "auto", precision or "all", kernels)
    elif device is None and precision is None and kernels:
        proof = _online(bundle, endpoint, model, timeout, as_json, server)
    else:
        fail("--device, --precision and --no-kernels are for what is computed here; the endpoint has its own")
    if as_json:
        print(json.dumps(_content(proof), indent=2))
    else:
        _show(proof)
    raise typer.Exit(0 if proof.report.holds else 1)


def _check_signature(bundle: Path, key: Path) -> None:
    from heed.bundle import BundleError
    from heed.bundle.signature import check_signature

    try:
        check_signature(bundle, key)
    except (BundleError, OSError) as error:
        fail(error)


@dataclass(frozen=True)
class Proof:
    """What was compared, and the findings."""

    bundle: str
    digest: str
    providers: dict[str, str]  # by precision
    report: "Report"
    endpoint: str = ""
    left_out: tuple[str, ...] = ()  # cases too large for the endpoint's messages
    against: str = ""  # whose answers these were compared with, if not the contract's


def _show_progress(findings: "Iterable[Finding]") -> "Iterable[Finding]":
    from rich.progress import track

    return track(findings, "comparing", console=err, transient=True)


def _offline(bundle: Path, device: str, precision: str, kernels: bool) -> Proof:
    from heed.bundle import BundleError, read_manifest
    from heed.bundle.contract import Report
    from heed.bundle.digests import bundle_digest, check_digests
    from heed.server.errors import DeviceError, HeedError
    from heed.server.repository.verification import load_and_compare

    if device not in ("auto", "cpu", "cuda"):
        fail(f"--device {device} is none of auto, cpu, cuda")
    report = Report()
    providers: dict[str, str] = {}
    try:
        if others := check_digests(bundle):
            err.print(f"no part of the bundle, and ignored: {', '.join(others)}", markup=False)
        manifest = read_manifest(bundle)
        for each in manifest.precisions if precision == "all" else [precision]:
            try:
                found = load_and_compare(bundle, device, each, kernels, everything=True, follow=_show_progress)  # type: ignore[arg-type]  # checked
            except DeviceError as error:
                report.unproven[each] = str(error)
            else:
                model, part = found
                providers[each] = model.session.provider
                report.findings.extend(part.findings)
    except (BundleError, HeedError, OSError) as error:
        fail(error)
    if not report.findings:
        fail("; ".join(dict.fromkeys(report.unproven.values())))
    return Proof(manifest.name, bundle_digest(bundle), providers, report)


def _beside_transformers(bundle: Path, folder: Path, device: str, precision: str, kernels: bool) -> Proof:
    """Compares with what `transformers` makes of the checkpoint."""
    from heed.bundle import BundleError
    from heed.bundle.contract import Report, check, plain_cases, read_contract
    from heed.bundle.digests import bundle_digest, check_digests
    from heed.server.engine.model import Model
    from heed.server.errors import HeedError

    if not folder.is_dir():
        fail(f"--against {folder} is no folder; give the checkpoint that the bundle was made of")
    try:
        from heed.cli.against import Transformers, asked
    except ModuleNotFoundError as error:
        fail(f"--against needs {error.name}, which is not installed: pip install torch transformers")
    try:
        check_digests(bundle)
        model = Model(bundle, device, precision, kernels=kernels)  # type: ignore[arg-type]  # it says what is wrong
        oracle = Transformers(folder, model.manifest)
        cases = asked(oracle, plain_cases(read_contract(bundle)))
        findings = list(_show_progress(check(cases, model.answer, precision, model.session.provider)))
    except (BundleError, HeedError, OSError, ValueError) as error:
        fail(error)
    providers = {precision: model.session.provider}
    return Proof(model.manifest.name, bundle_digest(bundle), providers, Report(findings), against=oracle.name)


def _online(
    bundle: Path, address: str, name: str | None, seconds: float, as_json: bool, server: ServerOptions
) -> Proof:
    from heed.bundle import BundleError, read_manifest
    from heed.bundle.contract import Report, attention_cases, check_complete, plain_cases, read_contract
    from heed.bundle.digests import bundle_digest, check_digests
    from heed.cli.verify_endpoint import CannotAsk, Endpoint, OtherBundle

    try:
        check_digests(bundle)
        manifest, cases = read_manifest(bundle), read_contract(bundle)
        check_complete(manifest, cases)
        served = Endpoint(address, name or manifest.name, bundle_digest(bundle), seconds, server)
        weights = attention_cases(cases) if manifest.gives_attentions else []
        report = Report(list(_show_progress(served.check([*plain_cases(cases), *weights]))))
    except OtherBundle as error:
        _refuse(error, manifest, served, as_json)
    except (BundleError, CannotAsk, OSError) as error:
        fail(error)
    left_out = tuple(served.left_out)
    if not report.findings:
        fail(f"no case fits into a message of {address}")
    return Proof(manifest.name, served.digest, {served.precision: served.provider}, report, address, left_out)


def _refuse(error: "OtherBundle", manifest: "Manifest", endpoint: "Endpoint", as_json: bool) -> NoReturn:
    """Reports that the endpoint serves another bundle, and ends with exit code 1."""
    if as_json:
        digests = {"digest": endpoint.digest, "endpoint": endpoint.address, "endpoint_digest": error.found}
        print(json.dumps({"bundle": manifest.name, **digests, "holds": False, "findings": []}, indent=2))
    err.print(f"[bold red]not this bundle:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(1)


def _content(proof: Proof) -> dict[str, object]:
    content: dict[str, object] = {
        "bundle": proof.bundle,
        "digest": proof.digest,
        "precision": ",".join(proof.providers),
        "provider": ",".join(dict.fromkeys(proof.providers.values())),
    }
    if proof.report.unproven:
        content |= {"not_compared": proof.report.unproven}
    if proof.against:
        content |= {"against": proof.against}
    if proof.endpoint:
        content |= {"endpoint": proof.endpoint, "left_out": list(proof.left_out)}
    return content | {"holds": proof.report.holds, "findings": [_row(finding) for finding in proof.report.findings]}


def _row(finding: "Finding") -> dict[str, object]:
    """A finding for JSON, which has no infinity: the error is null where there was no usable answer."""
    error = finding.error if math.isfinite(finding.error) else None
    return asdict(finding) | {"error": error, "holds": finding.holds}


def _show(proof: Proof) -> None:
    at = f" at {proof.endpoint}" if proof.endpoint else f" beside {proof.against}" if proof.against else ""
    for precision, part in proof.report.by_precision().items():
        out.print(report_table(part.findings))
        out.print(f"{proof.bundle}{at}, {precision} on {proof.providers[precision]}: {summary(part)}")
    for precision, reason in proof.report.unproven.items():
        err.print(f"[yellow]not compared[/]: {precision}. {escape(reason)}", soft_wrap=True)
    if proof.left_out:
        names = escape(", ".join(proof.left_out))
        err.print(f"[yellow]not compared[/], too large for a message of {proof.endpoint}: {names}", soft_wrap=True)
