"""A bundle in memory: computes batches of rows, and assembles the answers to requests. No network, no queue."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path

from heed.bundle import BundleError, Manifest, read_manifest
from heed.bundle.contract import Case, Finding, attention_cases, check, check_complete, plain_cases, read_contract
from heed.bundle.digests import DIGESTS, bundle_digest
from heed.bundle.files import BundleFiles
from heed.bundle.manifest import TOKENIZER, Device
from heed.bundle.sequence_packing import Answer, Arrays
from heed.server.engine.graph_runner import Graphs
from heed.server.engine.host import usable_cpus
from heed.server.engine.session import CUDA, device_for
from heed.server.requests.preprocess import Preprocessor
from heed.server.requests.tokenizer import TextTokenizer


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
        files: BundleFiles | None = None,
        digest: str = "",
    ) -> None:
        """
        Args:
            device: "auto" is the one that the precision is for, where it is for one only.
            anywhere: on any device, to try what it does there. It proves nothing and cannot be served.
            manifest: the bundle's own, under the name and version it is served as.
            kernels: see `Session`.
            files: of the bundle, with their digests, for a model that outlives what the folder holds now. Without them
                no digest is looked at here (see `bundle/digests.py`).
            digest: the bundle's, if it is known.

        Raises:
            BundleError: the bundle is not usable.
            DeviceError: the device is not usable.
        """
        self.folder = folder
        self.files = files or BundleFiles(folder)
        self.manifest = manifest or read_manifest(folder)
        self.precision = precision
        self.digest = digest or (bundle_digest(folder) if (folder / DIGESTS).exists() else "")
        self.tokenizer = self._load_tokenizer()
        self.preprocessor = Preprocessor(self.manifest, self.tokenizer)
        device = device if anywhere else device_for(precision, device)
        self._kernels = kernels
        self.graphs = Graphs(self.files, self.manifest, precision, "answers", device, kernels)
        self.session = self.graphs.session  # it knows the provider
        for graph in self.manifest.graphs:
            if graph.precision == precision:
                self.files.read(graph.file)  # those that are opened later, too

    @cached_property
    def attention_graphs(self) -> Graphs:
        """Loaded at the first use; the provider is that of the plain answers.

        Raises:
            BundleError, DeviceError: as above.
        """
        device: Device = "cuda" if self.session.provider == CUDA else "cpu"
        return Graphs(self.files, self.manifest, self.precision, "attentions", device, self._kernels)

    def _load_tokenizer(self) -> TextTokenizer | None:
        if not self.manifest.takes_text:
            return None
        content = bytes(self.files.read(TOKENIZER))
        tokenizer = TextTokenizer(self.folder / TOKENIZER, self.manifest.limits.text_length, content)
        if tokenizer.own_vocabulary > self.manifest.limits.vocabulary:
            raise BundleError(
                f"{TOKENIZER} gives ids up to {tokenizer.own_vocabulary - 1}, "
                f"the model's vocabulary ends at {self.manifest.limits.vocabulary - 1}"
            )
        return tokenizer

    def answer(self, inputs: Arrays, outputs: Iterable[str] = ()) -> Arrays:
        """Prepares a request, computes it as one batch, and assembles the answer.

        Each set of outputs is computed as for a caller who asks for nothing else.
        """
        request = self.preprocessor.preprocess(inputs, outputs)
        graphs = self.attention_graphs if request.spec.kind == "attentions" else self.graphs
        answers: list[Answer] = [{} for _ in request.rows]
        for output_set in graphs.output_sets:
            for answer, computed in zip(answers, graphs.run(request.rows, output_set), strict=True):
                answer.update(computed)
                for name in output_set - computed.keys():  # not finite, computed like this
                    answer.pop(name, None)
        return request.assemble(answers)

    def check_contract(self, everything: bool) -> Iterator[Finding]:
        """Compares the answers of this very session with the reference's: the cases for a start, or all, and then
        the attention weights too.

        Raises:
            BundleError: the contract cannot be read, or proves less than the manifest declares.
        """
        cases = read_contract(self.folder)
        check_complete(self.manifest, cases)
        plain = plain_cases(case for case in cases if everything or case.at_start)
        findings = self._check_in_parallel(plain)
        return chain(findings, self.check_attentions()) if everything else findings

    def _check_in_parallel(self, cases: list[Case]) -> Iterator[Finding]:
        """As many cases at a time as there are CPUs: a start waits for this."""

        def findings(case: Case) -> list[Finding]:
            return list(check([case], self.answer, self.precision, self.session.provider))

        with ThreadPoolExecutor(usable_cpus()) as pool:
            yield from chain.from_iterable(pool.map(findings, cases))

    def check_attentions(self) -> Iterator[Finding]:
        """Compares the attention weights, and the plain answers of the graph that computes them.

        Raises:
            BundleError, DeviceError: that graph cannot be used, or the contract is not the one it was.
        """
        if not self.manifest.gives_attentions:
            return iter(())
        self.files.check_others()
        provider = self.attention_graphs.session.provider
        return check(attention_cases(read_contract(self.folder)), self.answer, self.precision, provider)
