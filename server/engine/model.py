"""A bundle in memory: checks requests, runs groups of sequences, puts answers together. No network, no queue."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from heed.bundle import BundleError, Manifest, read_manifest
from heed.bundle.contract import Case, Finding, attention_cases, check, check_complete, plain_cases, read_contract
from heed.bundle.digests import DIGESTS, bundle_digest, check_digests
from heed.bundle.manifest import TOKENIZER
from heed.bundle.packing import Arrays, TokenSequence, unpack, unpack_attentions
from heed.server.engine.graphs import Answer, Graphs
from heed.server.engine.host import usable_cpus
from heed.server.engine.session import CUDA, Session, device_for
from heed.server.requests.preprocess import Request, RequestSpec, check_request, read_request
from heed.server.requests.rows import always
from heed.server.requests.tokenizer import Side, TextTokenizer
from heed.server.settings import Device


class Model:
    """One bundle on one device, in one precision."""

    def __init__(
        self,
        folder: Path,
        device: Device = "auto",
        precision: str = "fp32",
        anywhere: bool = False,
        manifest: Manifest | None = None,
        kernels: bool = True,
    ) -> None:
        """
        Args:
            device: "auto" is the one that the precision is for, where it is for one only.
            anywhere: on any device, to try what it does there. It proves nothing and cannot be served.
            manifest: the bundle's own, under the name and version it is served as.
            kernels: see `Session`.

        Raises:
            BundleError: the bundle is not usable. Its digests are not looked at here (see `bundle/digests.py`).
            DeviceError: the device is not usable.
        """
        self.folder = folder
        self.manifest = manifest or read_manifest(folder)
        self.precision = precision
        self.digest = bundle_digest(folder) if (folder / DIGESTS).exists() else ""
        self.text = self._text_encoder()
        device = device if anywhere else device_for(precision, device)
        self._kernels = kernels
        self.graphs = Graphs(folder, self.manifest, precision, "answers", device, kernels=kernels)
        self._wide: Graphs | None = None
        self._per_token = {spec.name for spec in self.manifest.outputs if spec.shape[:2] == [-1, -1]}

    @property
    def session(self) -> Session:
        """What runs the plain answers: it knows the provider."""
        return self.graphs.session

    @cached_property
    def attention_graphs(self) -> Graphs:
        """Loaded when first asked for; the provider is that of the plain answers.

        Raises:
            BundleError, DeviceError: as above.
        """
        device: Device = "cuda" if self.session.provider == CUDA else "cpu"
        return Graphs(self.folder, self.manifest, self.precision, "attentions", device, kernels=self._kernels)

    def check_files(self) -> None:
        """Raises BundleError if the folder does not hold any more what was loaded from it."""
        if not self.digest:  # it had no digests
            return
        check_digests(self.folder)
        if bundle_digest(self.folder) != self.digest:
            raise BundleError(f"{self.folder} holds another bundle than the one that was loaded from it")

    def _text_encoder(self) -> TextTokenizer | None:
        if not self.manifest.takes_text:
            return None
        encoder = TextTokenizer(self.folder / TOKENIZER, self.manifest.limits.text_length)
        if encoder.vocabulary > self.manifest.limits.vocabulary:
            raise BundleError(
                f"{TOKENIZER} gives ids up to {encoder.vocabulary - 1}, "
                f"the model's vocabulary ends at {self.manifest.limits.vocabulary - 1}"
            )
        return encoder

    def prepare(self, inputs: Arrays, outputs: Iterable[str] = (), truncate: Side | None = None) -> Request:
        """See `check_request`."""
        return check_request(self.manifest, self.text, inputs, outputs, truncate)

    def read(
        self, form: RequestSpec, inputs: Arrays, truncate: Side | None = None, wanted: Callable[[], bool] = always
    ) -> Request:
        """See `read_request`."""
        return read_request(self.manifest, self.text, form, inputs, truncate, wanted)

    def open_multi_threaded(self, threads: int) -> None:
        """From now on a run that has the machine to itself takes so many threads. It is for the CPU.

        Raises:
            BundleError: a graph is not usable.
        """
        self._wide = Graphs(self.folder, self.manifest, self.precision, "answers", "cpu", threads, self._kernels)

    def close_multi_threaded(self) -> None:
        self._wide = None

    @property
    def is_multi_threaded(self) -> bool:
        """Whether a run that has the machine to itself takes several threads."""
        return self._wide is not None

    def run(self, group: Sequence[TokenSequence], outputs: Collection[str] = (), alone: bool = False) -> list[Answer]:
        """The plain answers: these, or all. Safe in several threads. `alone`: it has the machine to itself."""
        graphs = self._wide if alone and self._wide else self.graphs
        return graphs.run(group, outputs)

    def run_attentions(
        self, group: Sequence[TokenSequence], outputs: Collection[str] = (), alone: bool = False
    ) -> list[Answer]:
        """The plain answers and `attentions`."""
        return self.attention_graphs.run(group, outputs)

    def assemble(self, request: Request, answers: list[Answer]) -> Arrays:
        """The answers to a request's rows as the caller sees them, zeros (or "") at padding."""
        return {name: self._output(name, request, answers) for name in request.outputs}

    def _output(self, name: str, request: Request, answers: list[Answer]) -> np.ndarray:
        if name == "attentions":
            return unpack_attentions(request.sequences, [answer[name] for answer in answers], request.length)
        values = self._values(name, request, answers)
        return unpack(request.sequences, values, request.length) if name in self._per_token else np.array(values)

    def _values(self, name: str, request: Request, answers: list[Answer]) -> list[np.ndarray]:
        """One for each row."""
        if name == "tokens":
            return [text.words for text in request.texts]
        if name == "offsets":
            return [text.offsets for text in request.texts]
        if name == "labels":
            labels = np.array(self.manifest.labels)
            return [labels[answer["logits"].argmax(-1)] for answer in answers]
        return [answer[name] for answer in answers]

    def answer(self, inputs: Arrays, outputs: Iterable[str] = ()) -> Arrays:
        """Prepare, run as one group, assemble. What is told of whole rows is computed as for a caller who asks for
        nothing else."""
        request = self.prepare(inputs, outputs)
        graphs = self.attention_graphs if request.form.kind == "attentions" else self.graphs
        answers: list[Answer] = [{} for _ in request.sequences]
        for way in graphs.ways:
            for answer, found in zip(answers, graphs.run(request.sequences, way), strict=True):
                answer.update(found)
        return self.assemble(request, answers)

    def check_contract(self, everything: bool) -> Iterator[Finding]:
        """Compares the answers of this very session with the reference's: the cases for a start, or all, and then
        the attention weights too.

        Raises:
            BundleError: the contract cannot be read, or proves less than the manifest declares.
        """
        cases = read_contract(self.folder)
        check_complete(self.manifest, cases)
        plain = plain_cases(case for case in cases if everything or case.at_start)
        findings = self._check_side_by_side(plain)
        return chain(findings, self.check_attentions()) if everything else findings

    def _check_side_by_side(self, cases: list[Case]) -> Iterator[Finding]:
        """As many cases at a time as there are CPUs: a start waits for this."""

        def findings(case: Case) -> list[Finding]:
            return list(check([case], self.answer, self.precision, self.session.provider))

        with ThreadPoolExecutor(usable_cpus()) as pool:
            yield from chain.from_iterable(pool.map(findings, cases))

    def check_attentions(self) -> Iterator[Finding]:
        """Compares the attention weights, and the plain answers of the graph that computes them.

        Raises:
            BundleError, DeviceError: that graph cannot be used.
        """
        if not self.manifest.gives_attentions:
            return iter(())
        provider = self.attention_graphs.session.provider
        return check(attention_cases(read_contract(self.folder)), self.answer, self.precision, provider)
