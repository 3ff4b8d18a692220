"""A bundle in memory: checks requests, runs groups of sequences, puts answers together. No network, no queue."""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np

from bundle import BundleError, read_manifest
from bundle.contract import Finding, check, check_complete, read_contract
from bundle.digests import DIGESTS, bundle_digest
from bundle.manifest import TOKENIZER
from bundle.packing import Arrays, Sequence, pack, split, unpack
from server.errors import DeviceError
from server.requests import Request, check_request
from server.runtime import Runtime
from server.settings import Device
from server.text import TextEncoder

# One sequence's answers by output: [t, D] for what every token has, [D] for what the sequence has.
Answer = dict[str, np.ndarray]


class Model:
    """One bundle on one device, in one precision."""

    def __init__(self, folder: Path, device: Device = "auto", precision: str = "fp32") -> None:
        """
        Raises:
            BundleError: the bundle is not usable. Its digests are not looked at here (see `bundle/digests.py`).
            DeviceError: the device is not usable.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.precision = precision
        self.digest = bundle_digest(folder) if (folder / DIGESTS).exists() else ""
        self.text = self._text_encoder()
        graph = self.manifest.graphs_of(precision)[0]
        self.runtime = self._open(folder / graph.file, device)
        self._per_token = {spec.name for spec in self.manifest.outputs if len(spec.shape) == 3}
        if self.runtime.outputs != graph.outputs:
            raise BundleError(f"{graph.file} computes {self.runtime.outputs}, the manifest says {graph.outputs}")

    def _open(self, graph: Path, device: Device) -> Runtime:
        if not graph.is_file():
            raise BundleError(f"{graph} is missing")
        try:
            return Runtime(graph, device)
        except DeviceError:
            raise
        except Exception as error:  # onnxruntime's errors have no other class in common
            raise BundleError(f"{graph} cannot be loaded: {error}") from None

    def _text_encoder(self) -> TextEncoder | None:
        if not self.manifest.takes_text:
            return None
        encoder = TextEncoder(self.folder / TOKENIZER, self.manifest.limits.text_length)
        if encoder.vocabulary > self.manifest.limits.vocabulary:
            raise BundleError(
                f"{TOKENIZER} gives ids up to {encoder.vocabulary - 1}, "
                f"the model's vocabulary ends at {self.manifest.limits.vocabulary - 1}"
            )
        return encoder

    def prepare(self, inputs: Arrays, outputs: Iterable[str] = (), truncate: bool = False) -> Request:
        """See `check_request`."""
        return check_request(self.manifest, self.text, inputs, outputs, truncate)

    def run(self, group: Many[Sequence]) -> list[Answer]:
        """One run of the graph for a group of sequences, of one request or of many. Safe in several threads."""
        outputs = self.runtime.run(pack(group, self.manifest.aligned))
        columns = {
            name: split(group, values) if name in self._per_token else list(values) for name, values in outputs.items()
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def assemble(self, request: Request, answers: list[Answer]) -> Arrays:
        """The answers to a request's rows as the caller sees them: `[B, L, D]` and `[B, D]`, zeros at padding."""
        arrays: Arrays = {}
        for name in request.outputs:
            values = [answer[name] for answer in answers]
            per_token = name in self._per_token
            arrays[name] = unpack(request.sequences, values, request.length) if per_token else np.stack(values)
        return arrays

    def answer(self, inputs: Arrays, outputs: Iterable[str] = ()) -> Arrays:
        """Prepare, run as one group, assemble."""
        request = self.prepare(inputs, outputs)
        return self.assemble(request, self.run(request.sequences))

    def check_contract(self, everything: bool) -> Iterator[Finding]:
        """Compares the answers of this very session with the reference's: the cases for a start, or all.

        Raises:
            BundleError: the contract cannot be read, or proves less than the manifest declares.
        """
        cases = read_contract(self.folder)
        check_complete(self.manifest, cases)
        chosen = [case for case in cases if everything or case.at_start]
        return check(chosen, self.answer, self.precision, self.runtime.provider)
