"""The graphs of one kind, as one function from rows to answers."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from heed.bundle import BundleError, Manifest
from heed.bundle.files import BundleFiles
from heed.bundle.manifest import Device, Graph, GraphKind
from heed.bundle.sequence_packing import Answer, TokenSequence, by_length, pack, split, split_attentions
from heed.server.engine.session import CUDA, Session
from heed.server.engine.weights import load_graph
from heed.server.errors import DeviceError


class Graphs:
    """A row's own span decides which graph computes it, so that its bits never depend on the batch it is in."""

    def __init__(
        self,
        files: BundleFiles,
        manifest: Manifest,
        precision: str,
        kind: GraphKind,
        device: Device,
        kernels: bool = True,
    ) -> None:
        """
        Args:
            kernels: see `Session`.

        Raises:
            BundleError: a graph is not usable, or there is none.
            DeviceError: the device is not usable.
        """
        self._files, self._kernels = files, kernels
        self._aligned, self._first_real = manifest.aligned, manifest.first_token == "real"
        self._per_token = {spec.name for spec in manifest.outputs if spec.shape[:2] == [-1, -1]}
        *others, last = manifest.graphs_of(precision, kind)
        self.session = self._open(last, device)  # for all rows; the others are on its device
        settled: Device = "cuda" if self.session.provider == CUDA else "cpu"
        others = [graph for graph in others if settled == "cuda" or not graph.fused]
        self._graphs = [*others, last]
        self._longest = [math.inf if graph.longest is None else graph.longest for graph in self._graphs]
        self._sessions = [*(self._open(graph, settled) for graph in others), self.session]
        self._multi_threaded: list[Session] = []  # the same graphs, for a run that is alone in the process

    def _open(self, graph: Graph, device: Device, threads: int = 1) -> Session:
        loaded = load_graph(self._files, graph.file)
        try:
            session = Session(loaded, device, threads, self._kernels)
        except DeviceError:
            raise
        except Exception as error:  # onnxruntime's errors have no other class in common
            raise BundleError(f"{self._files.folder / graph.file} cannot be loaded: {error}") from None
        if session.outputs != graph.outputs:
            raise BundleError(f"{graph.file} computes {session.outputs}, the manifest says {graph.outputs}")
        return session

    def open_multi_threaded(self, threads: int) -> None:
        """From now on a run that is alone in the process uses sessions with so many threads. It is for the CPU.

        Raises:
            BundleError: a graph is not usable.
        """
        self._multi_threaded = [self._open(graph, "cpu", threads) for graph in self._graphs]

    def close_multi_threaded(self) -> None:
        self._multi_threaded = []

    @property
    def is_multi_threaded(self) -> bool:
        """Whether a run that is alone in the process uses several threads."""
        return bool(self._multi_threaded)

    @property
    def span_limits(self) -> list[int]:
        """The spans up to which each graph for shorter ones is used."""
        return [int(longest) for longest in self._longest[:-1] if longest < math.inf]

    @property
    def output_sets(self) -> list[frozenset[str]]:
        """The sets of outputs for which a row is computed differently: all (empty), and those of whole rows, where that
        leaves out tokens in the last layer."""
        of_rows = frozenset(self.session.outputs) - self._per_token - {"attentions"}
        return [frozenset(), of_rows] if "kept" in self.session.inputs else [frozenset()]

    def run(
        self, rows: Sequence[TokenSequence], outputs: Collection[str] = (), exclusive: bool = False
    ) -> list[Answer]:
        """The answers to a batch of rows, of one request or of several. Safe in several threads.

        An output with NaN or infinity is missing in the answer to that row, and in no other.

        Args:
            outputs: these, or all.
            exclusive: nothing else runs or waits in the process.
        """
        sessions = self._multi_threaded if exclusive and self._multi_threaded else self._sessions
        # Most models have one graph.
        chosen = [self._choose(row) for row in rows] if len(self._graphs) > 1 else [0] * len(rows)
        answers: list[Answer] = [{} for _ in rows]
        for number in sorted(set(chosen)):
            indices = [index for index, choice in enumerate(chosen) if choice == number]
            computed = self._run(sessions[number], number, [rows[index] for index in indices], outputs)
            for index, answer in zip(indices, computed, strict=True):
                answers[index] = answer
        return answers

    def _choose(self, row: TokenSequence) -> int:
        span = row.span(self._aligned)
        return next(
            number
            for number, (graph, longest) in enumerate(zip(self._graphs, self._longest, strict=True))
            if span <= longest and (not graph.fused or row.whole)
        )

    def _run(self, session: Session, number: int, rows: list[TokenSequence], outputs: Collection[str]) -> list[Answer]:
        every_token = not outputs or not self._per_token.isdisjoint(outputs)
        feeds = pack(rows, self._aligned, every_token, self._first_real)
        if self._graphs[number].fused:
            feeds |= by_length(feeds)
        computed = session.run(feeds, outputs)
        by_output = {name: self._split(name, values, rows) for name, values in computed.items()}
        answers = [dict(zip(by_output, values, strict=True)) for values in zip(*by_output.values(), strict=True)]
        for name, values in computed.items():
            if not np.isfinite(values).all():  # one look at the batch: few models ever overflow
                _leave_out_what_is_not_finite(name, answers)
        return answers

    def _split(self, name: str, values: np.ndarray, rows: list[TokenSequence]) -> list[np.ndarray]:
        if name == "attentions":
            return list(split_attentions(rows, values, self._aligned))
        return split(rows, values) if name in self._per_token else list(values)


def _leave_out_what_is_not_finite(name: str, answers: list[Answer]) -> None:
    for answer in answers:
        if not np.isfinite(answer[name]).all():
            del answer[name]
