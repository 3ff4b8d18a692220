"""From a bundle's folder to a model that is verified and warm. Blocking: it takes seconds."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from heed.bundle import Manifest
from heed.bundle.contract import Finding, Report
from heed.bundle.digests import check_names, digest_of, listed_files, read_digests
from heed.bundle.files import BundleFiles
from heed.bundle.manifest import MANIFEST, Device, parse_manifest
from heed.server.engine.host import resident_bytes, usable_cpus, usable_memory
from heed.server.engine.model import Model
from heed.server.engine.session import CUDA
from heed.server.errors import StartError
from heed.server.repository.warmup import Warmup, warm_up
from heed.server.settings import Settings

log = logging.getLogger("heed.loading")

MIB = 2**20
# Of a precision's graphs and weights: they are held once, and matrices a second time, in the order that a session
# multiplies them in.
MEMORY_FACTOR = 2.0


class OutOfMemory(StartError):
    """There is not enough memory now. Later there may be."""


@dataclass(frozen=True)
class VerifiedModel:
    """A model, the report of its verification, and how its requests will be batched."""

    model: Model
    report: Report
    warmup: Warmup
    threads: int  # that compute batches of this and of other models


def memory_needed(folder: Path, precision: str) -> int:
    """Bytes that a model is expected to take, by the size of its graphs and of the weights that they name.

    Those in int8 take some of float32's.
    """
    graphs = [path.read_bytes() for path in folder.glob(f"*.{precision}*.onnx")]
    named = [path for path in folder.glob("*.data") if any(path.name.encode() in graph for graph in graphs)]
    return int(MEMORY_FACTOR * (sum(map(len, graphs)) + sum(path.stat().st_size for path in named)))


def check_memory(folder: Path, settings: Settings) -> None:
    """Raises OutOfMemory if a model is not expected to fit beside those that are loaded, or not even alone."""
    budget = settings.memory_mib * MIB or usable_memory()
    needed, taken = memory_needed(folder, settings.precision), resident_bytes()
    if needed > budget:
        raise OutOfMemory(
            f"{folder} needs about {needed // MIB} MiB and never fits into the {budget // MIB} MiB that there are; "
            "give more memory (a container's limit, or --memory-mib), or serve another precision"
        )
    if taken + needed > budget:
        raise OutOfMemory(
            f"{folder} needs about {needed // MIB} MiB, and {taken // MIB} of {budget // MIB} MiB are taken; "
            "give more memory (a container's limit, or --memory-mib), or serve less"
        )


def load_and_compare(
    folder: Path,
    device: Device = "auto",
    precision: str = "fp32",
    kernels: bool = True,
    manifest: Manifest | None = None,
    everything: bool = False,
    follow: Callable[[Iterator[Finding]], Iterable[Finding]] = iter,
    files: BundleFiles | None = None,
    digest: str = "",
) -> tuple[Model, Report]:
    """Loads a bundle, and compares its answers with the reference's.

    Where heed's own kernels exceed the budget, onnxruntime's are used: digits represent values far below a token's
    largest one less exactly than floats do (see `server/engine/kernels`).

    Args:
        device, precision, kernels, manifest, files, digest: see `Model`.
        everything: every case of the contract, and not those for a start only.
        follow: is given the findings as they come in, for progress.

    Raises:
        BundleError, DeviceError: see `Model`.
    """
    model = Model(folder, device, precision, manifest=manifest, kernels=kernels, files=files, digest=digest)
    model.files.check_others()  # the contract is one of them
    report = Report(list(follow(model.check_contract(everything))))
    if report.holds or not model.session.has_kernels:
        return model, report
    log.warning("%s; all of %s is left to onnxruntime", report.worst, folder)
    del model  # before the other one comes
    return load_and_compare(folder, device, precision, False, manifest, everything, follow, files, digest)


def load_verified(folder: Path, settings: Settings, manifest: Manifest | None = None) -> tuple[Model, Report]:
    """Loads a bundle and verifies it: its signature (if one is required) and its digests, then its answers, on the
    provider that will serve.

    Args:
        manifest: the bundle's own, or the same under another name and version.

    Raises:
        BundleError: a file is missing, additional or altered, or the bundle is not signed as it must be.
        StartError: an answer is too far from the reference's, or the bundle has not what the settings ask for.
        DeviceError: the device cannot be used.
    """
    content = (
        _signed_digests(folder, settings.require_signature) if settings.require_signature else read_digests(folder)
    )
    listed = listed_files(folder, content)
    if others := check_names(folder, listed):
        log.info("%s: %s: no part of the bundle, and ignored", folder, ", ".join(others))
    files = BundleFiles(folder, listed)
    manifest = manifest or parse_manifest(folder, bytes(files.read(MANIFEST)))
    check_memory(folder, settings)
    if settings.attentions and not manifest.gives_attentions:
        raise StartError(f"{folder} has no attention weights to serve; leave out --attentions")
    model, report = load_and_compare(
        folder, settings.device, settings.precision, settings.kernels, manifest, files=files, digest=digest_of(content)
    )
    if not report.holds:
        raise StartError(
            f"{folder} does not answer as its reference: {report.worst}; `heed verify {folder}` shows every case"
        )
    return model, report


def _signed_digests(folder: Path, key: Path) -> bytes:
    from heed.bundle.signature import signed_digests  # here: who asks for no signature has no cryptography in memory

    return signed_digests(folder, key)


def default_threads(model: Model) -> int:
    """How many batches to compute at a time: one on each CPU, or one on a GPU while the next is prepared."""
    return 2 if model.session.provider == CUDA else usable_cpus()


def load(folder: Path, settings: Settings, manifest: Manifest) -> VerifiedModel:
    """Verifies a bundle and warms it up.

    Raises:
        BundleError, StartError, DeviceError: see `load_verified`.
    """
    model, report = load_verified(folder, settings, manifest)
    threads = settings.threads or default_threads(model)
    return VerifiedModel(model, report, warm_up(model, threads), threads)
