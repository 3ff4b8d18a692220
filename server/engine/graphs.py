"""The graphs of one kind, as one function from sequences to answers."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from heed.bundle import BundleError, Manifest
from heed.bundle.manifest import Graph, GraphKind
from heed.bundle.packing import TokenSequence, by_length, pack, split, split_attentions
from heed.server.engine.session import CUDA, Session
from heed.server.errors import DeviceError
from heed.server.settings import Device

# One sequence's answers by output: [t, D] for what every token has, [D] for what the sequence has, and attentions
# [layers, N, t, t].
Answer = dict[str, np.ndarray]


def _open(folder: Path, graph: Graph, device: Device, threads: int, kernels: bool) -> Session:
    path = folder / graph.file
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    try:
        runtime = Session(path, device, threads, kernels)
    except DeviceError:
        raise
    except Exception as error:  # onnxruntime's errors have no other class in common
        raise BundleError(f"{path} cannot be loaded: {error}") from None
    if runtime.outputs != graph.outputs:
        raise BundleError(f"{graph.file} computes {runtime.outputs}, the manifest says {graph.outputs}")
    return runtime


class Graphs:
    """A sequence's own span decides which of them computes it, so that its bits never depend on its neighbours."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        precision: str,
        kind: GraphKind,
        device: Device,
        threads: int = 1,
        kernels: bool = True,
    ) -> None:
        """
        Args:
            threads, kernels: see `Session`.

        Raises:
            BundleError: a graph is not usable, or there is none.
            DeviceError: the device is not usable.
        """
        self._aligned = manifest.aligned
        self._per_token = {spec.name for spec in manifest.outputs if spec.shape[:2] == [-1, -1]}
        *others, last = manifest.graphs_of(precision, kind)
        self.session = _open(folder, last, device, threads, kernels)  # for all sequences; the others are on its device
        settled: Device = "cuda" if self.session.provider == CUDA else "cpu"
        others = [graph for graph in others if settled == "cuda" or not graph.fused]
        self._graphs = [*others, last]
        self._longest = [math.inf if graph.longest is None else graph.longest for graph in self._graphs]
        self._runtimes = [*(_open(folder, graph, settled, threads, kernels) for graph in others), self.session]

    @property
    def steps(self) -> list[int]:
        """The spans up to which each graph for shorter ones is used."""
        return [int(longest) for longest in self._longest[:-1] if longest < math.inf]

    @property
    def ways(self) -> list[frozenset[str]]:
        """What to ask for so that a sequence is computed in each way that there is: all (empty), and what is told of
        whole sequences, where that leaves out tokens in the last layer."""
        of_rows = frozenset(self.session.outputs) - self._per_token - {"attentions"}
        return [frozenset(), of_rows] if "kept" in self.session.inputs else [frozenset()]

    def run(self, group: Sequence[TokenSequence], outputs: Collection[str] = ()) -> list[Answer]:
        """The answers to a group of sequences, of one request or of many: these outputs, or all. Safe in several
        threads."""
        chosen = [self._choose(member) for member in group]
        answers: list[Answer] = [{} for _ in group]
        for number in sorted(set(chosen)):
            places = [place for place, choice in enumerate(chosen) if choice == number]
            members = [group[place] for place in places]
            for place, answer in zip(places, self._run(number, members, outputs), strict=True):
                answers[place] = answer
        return answers

    def _choose(self, member: TokenSequence) -> int:
        span = member.span(self._aligned)
        return next(
            number
            for number, (graph, longest) in enumerate(zip(self._graphs, self._longest, strict=True))
            if span <= longest and (not graph.fused or member.whole)
        )

    def _run(self, number: int, group: list[TokenSequence], outputs: Collection[str]) -> list[Answer]:
        every_token = not outputs or not self._per_token.isdisjoint(outputs)
        feeds = pack(group, self._aligned, every_token)
        if self._graphs[number].fused:
            feeds |= by_length(feeds)
        answers = self._runtimes[number].run(feeds, outputs)
        columns = {name: self._of_members(name, values, group) for name, values in answers.items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _of_members(self, name: str, values: np.ndarray, group: list[TokenSequence]) -> list[np.ndarray]:
        if name == "attentions":
            return list(split_attentions(group, values, self._aligned))
        return split(group, values) if name in self._per_token else list(values)
