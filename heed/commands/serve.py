import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from heed.console import err, fail, out
from heed.reports import budget_text, error_text
from server.settings import Settings

if TYPE_CHECKING:
    from server.lifecycle import Ready


def _from_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one option for each field of Settings: flag, environment variable, default and help."""
    parameters = []
    for name, spec in Settings.model_fields.items():
        kind: Any = spec.annotation
        if spec.is_required():
            option = typer.Argument(metavar=name.upper(), help=spec.description, envvar=f"HEED_{name.upper()}")
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option])
            )
        else:
            option = typer.Option(help=spec.description, envvar=f"HEED_{name.upper()}")
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=spec.default, annotation=Annotated[kind, option]
                )
            )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _show(ready: "Ready") -> None:
    """The block that a start prints: what, where, on what, how it groups, and how exact it is."""
    model, worst = ready.model, ready.report.worst
    provider = model.runtime.provider
    if model.runtime.fallback:
        provider += f" [dim]({escape(model.runtime.fallback)})[/]"
    bits = f"answers in a group differ by up to {ready.warmup.difference:.0e}"
    if ready.warmup.bit_equal:
        bits = "the same bits alone and in any group"
    rows = {
        "model": f"{model.manifest.name} version {model.manifest.version}, {model.precision}, {model.digest[:19]}",
        "takes": ", ".join(spec.name for spec in model.manifest.inputs),
        "gives": ", ".join(spec.name for spec in model.manifest.outputs),
        "listens": f"{ready.address} (gRPC, plain text)",
        "metrics": f"{ready.metrics} (Prometheus, HTTP)" if ready.metrics else "none",
        "runs on": f"{provider}, {ready.threads} thread{'s' * (ready.threads != 1)}"
        + ", all of them for a lone request" * model.is_wide,
        "groups": f"{ready.warmup.strategy}; {bits}",
        "error": f"{error_text(worst)} at most, {budget_text(worst)} allowed "
        f"[dim]({len(ready.report.findings)} comparisons with the reference)[/]",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", value)
    out.print("[bold green]READY[/]")
    out.print(table)


def _settings(values: dict[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: {first['msg']}")


@_from_settings
def serve(**values: Any) -> None:
    """Serve a bundle over gRPC, once its answers are proven equal to the reference's on this very machine.

    The port opens at once and answers UNAVAILABLE; the health service says SERVING when every check has passed. SIGTERM
    finishes what is in flight. Each setting is also an environment variable.
    """
    from bundle import BundleError
    from server.errors import HeedError
    from server.lifecycle import Server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        server = Server(_settings(values), on_ready=_show)
        _run(server.serve)
    except (BundleError, HeedError, OSError) as error:
        fail(error)
    err.print("stopped")


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On uvloop where there is one: it takes less time per message."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main())
    else:
        uvloop.run(main())
