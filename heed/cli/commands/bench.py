import asyncio
import json
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from heed.cli.console import err, fail, out
from heed.cli.server_options import ServerOptions, explain_error, with_server_options

if TYPE_CHECKING:
    from heed.load.driver import Load

REQUESTS = 2000  # different ones, sent over again
CAPACITY = 32  # callers whose closed loop is called the capacity


@with_server_options
def bench(
    *,
    server: ServerOptions,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    model: Annotated[str, typer.Argument(help="The model's name.")],
    workload: Annotated[
        str, typer.Option(help="sentences, queries, documents or mixed: how long the requests are.")
    ] = "sentences",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each load lasts.")] = 5.0,
    callers: Annotated[
        list[int], typer.Option("--callers", min=1, help="Closed loops: so many callers, each waits; repeat it.")
    ] = [1, 8, 32, 128],  # noqa: B006 - typer's way
    load: Annotated[
        list[int],
        typer.Option("--load", min=1, help="Open loops: percent of what 32 waiting callers get; repeat it."),
    ] = [50, 80, 95, 200],  # noqa: B006
    output: Annotated[
        list[str] | None, typer.Option("--output", help="Outputs to ask for; the smallest by default.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that a caller waits for an answer.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, for programs.")] = False,
) -> None:
    """Load a server with requests as they come in life, and show how many it answers and how fast.

    Closed loops: each caller sends its next request when it has the answer to the last. Open loops: requests come at
    random moments (Poisson) whatever the answers take, and latencies count from the moment a request was meant to be
    sent.

    [dim]heed bench localhost:8001 minilm --callers 32 --load 80 --seconds 10[/]
    """
    from heed.client import CallError
    from heed.load.workloads import WORKLOADS

    if workload not in WORKLOADS:
        fail(f"workload {workload!r} is none of {', '.join(WORKLOADS)}")
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("connecting", total=len({*callers, *([CAPACITY] if load else [])}) + len(load))

        def done(finished: "Load") -> None:
            progress.update(task, advance=1, description=finished.name)

        plan = _Plan(workload, seconds, callers, load, output or [])
        try:
            loads = asyncio.run(_drive(server, address, model, plan, timeout, done))
        except (CallError, ValueError, _Unanswered) as error:
            fail(explain_error(error))
    if as_json:
        print(json.dumps([figures(each) for each in loads]))
    else:
        out.print(f"[bold]{model}[/], {workload}: {WORKLOADS[workload].help}")
        out.print(_table(loads))
    for code, reason in ChainMap(*(each.reasons for each in loads)).items():
        err.print(f"[yellow]the first {code}[/]: {escape(explain_error(reason))}", soft_wrap=True)
    if silent := [each.name for each in loads if each.errors and not each.latencies]:
        fail(f"nothing was answered under {', '.join(silent)}")


class _Unanswered(RuntimeError):
    """No caller of a closed loop got an answer; the message says what they got."""


@dataclass(frozen=True)
class _Plan:
    workload: str
    seconds: float
    callers: list[int]
    loads: list[int]  # percent of the capacity
    outputs: list[str]


async def _drive(
    server: ServerOptions, address: str, model: str, plan: _Plan, timeout: float, done: Callable[["Load"], None]
) -> list["Load"]:
    """One load after the other, a short one first to warm up."""
    from heed.client import AsyncClient
    from heed.load.driver import Driver, ask_by_client
    from heed.load.workloads import WORKLOADS, requests

    loads = []
    async with server.client(AsyncClient, address, model, timeout) as client:
        info = await client.info()
        outputs = plan.outputs or _smallest(list(info.outputs))
        driver = Driver(ask_by_client(client, requests(WORKLOADS[plan.workload], info, REQUESTS), outputs))
        _answered(await driver.closed(CAPACITY, min(1.0, plan.seconds)))
        for callers in sorted({*plan.callers, *([CAPACITY] if plan.loads else [])}):
            loads.append(_answered(await driver.closed(callers, plan.seconds)))
            done(loads[-1])
        capacity = next((each.rate for each in loads if each.name == f"{CAPACITY} callers"), 0.0)
        for percent in plan.loads:
            name = f"{percent} % load"
            loads.append(await driver.open(capacity * percent / 100, plan.seconds, name))
            done(loads[-1])
    return loads


def _answered(load: "Load") -> "Load":
    """The load, if there is an answer to measure."""
    if not load.latencies:
        errors = (f"{number} {code}: {load.reasons[code]}" for code, number in load.errors.items())
        raise _Unanswered(f"nothing was answered: {'; '.join(errors)}")
    return load


def _smallest(outputs: list[str]) -> list[str]:
    """What a model is for, rather than the hidden states of every token."""
    for name in ("sentence_embedding", "labels", "logits"):
        if name in outputs:
            return [name]
    return ["last_hidden_state"]


def figures(load: "Load") -> dict[str, object]:
    """JSON has no NaN: where nothing was answered there is no latency."""
    percentiles = {f"p{share}_ms": load.percentile(share) * 1e3 if load.latencies else None for share in (50, 95, 99)}
    return {"load": load.name, "answers_per_second": load.rate} | percentiles | {"errors": dict(load.errors)}


def _table(loads: list["Load"]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("answers/s", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(name, justify="right")
    table.add_column("errors")
    for load in loads:
        milliseconds = (f"{load.percentile(share) * 1e3:.1f}" for share in (50, 95, 99))
        errors = ", ".join(f"{number} {code}" for code, number in load.errors.items())
        table.add_row(load.name, f"{load.rate:.0f}", *milliseconds, errors)
    return table
