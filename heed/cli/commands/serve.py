import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape
from rich.table import Table

from heed.cli.console import err, fail, out
from heed.cli.reports import budget_text, error_text
from heed.cli.standard_streams import lost_output
from heed.server.engine import kernels
from heed.server.environment import PREFIX, variables
from heed.server.settings import Settings

CONFIG, OWN_TOKEN = "HEED_CONFIG", "HEED_TOKEN"
OTHER_VARIABLES = {CONFIG, OWN_TOKEN, "HEED_MAX_ISA"}  # which are no settings, and have a meaning

if TYPE_CHECKING:
    from heed.server.lifecycle import Ready
    from heed.server.repository.model_repository import IndexEntry
    from heed.server.repository.registry import ModelVersion


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _parameter(name: str, spec: FieldInfo) -> inspect.Parameter:
    """A setting as an option. Without a value it is None, so that the file's value counts."""
    option: Any
    text = escape(spec.description or "")
    # typer would put the default into parentheses, and take every variable of the name for the setting.
    variable = f" [dim]\\[env var: {_variable(name)}][/]"
    if spec.is_required():
        option = typer.Argument(metavar=name.upper(), help=text + variable, show_default=False)
    else:
        group = spec.json_schema_extra["group"] if isinstance(spec.json_schema_extra, dict) else None
        default = "" if spec.default in (None, "") else f" [dim]\\[default: {spec.default}][/]"
        option = typer.Option(help=text + default + variable, show_default=False, rich_help_panel=str(group))
    kind: Any = spec.annotation
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _from_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each field of Settings to a command's own options."""
    own = [one for one in inspect.signature(command).parameters.values() if one.kind is not one.VAR_KEYWORD]
    parameters = [_parameter(name, spec) for name, spec in Settings.model_fields.items()]
    command.__signature__ = inspect.Signature(parameters + own)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters + own}
    return command


def _read(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, by name."""
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{path} is not YAML: {error}")
    if not isinstance(values, dict):
        fail(f"{path} must have lines like `port: 8001`, got {type(values).__name__}")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in values.keys() - Settings.model_fields.keys():
        near = [f"; did you mean {match}?" for match in get_close_matches(name, Settings.model_fields, 1)]
        fail(f"{path}: {name} is no setting" + "".join(near))
    return values


def _from_environment() -> dict[str, str]:
    """The settings of variables, by name. Ends the command if one is no setting: what it was meant for, tokens say,
    would be left out in silence."""
    told = variables()
    known = {_variable(name): name for name in Settings.model_fields}
    unknown = [_unknown_variable(name, known) for name in told.keys() - known.keys() - OTHER_VARIABLES]
    if unknown:
        fail("; ".join(sorted(unknown)) + "; unset what is not meant for heed")
    if OWN_TOKEN in told and _variable("tokens") not in told:
        err.print(f"[yellow]{OWN_TOKEN} is for callers: a server's tokens are those of {_variable('tokens')}[/]")
    return {known[name]: value for name, value in told.items() if name in known}


def _unknown_variable(name: str, known: Iterable[str]) -> str:
    near = [f", did you mean {match}?" for match in get_close_matches(name, known, 1)]
    return f"{name} is no setting" + "".join(near)


def _settings(config: Path | None, given: dict[str, Any]) -> Settings:
    """Flags take precedence over variables, those over the file, and the file over the defaults."""
    flags = {name: value for name, value in given.items() if value is not None}
    told, from_file = _from_environment(), _read(config) if config else {}
    try:
        return Settings(**{**from_file, **told, **flags})
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] == "missing")
        name = str(first["loc"][0])
        if first["type"] == "missing":
            fail("which bundle or repository to serve? `heed serve FOLDER`, HEED_BUNDLE, or `bundle:` in the file")
        where = _flag(name) if name in flags else _variable(name) if name in told else f"{config}: {name}:"
        fail(f"{where} {first['input']}: {first['msg']}")


def _model_rows(served: "ModelVersion") -> dict[str, str]:
    """What one model is, how its rows are batched, and how exact it is."""
    assert served.verified
    model, report, warmup = served.verified.model, served.verified.report, served.verified.warmup
    provider = model.session.provider
    if model.session.fallback:
        provider += f" [dim]({escape(model.session.fallback)})[/]"
    bits = f"answers in a batch differ by up to {warmup.difference:.0e}"
    if warmup.bit_equal:
        bits = "the same bits alone and in any batch"
    threads = served.verified.threads
    return {
        "model": f"{served.name} version {served.version}, {model.precision}, {model.digest[:19]}",
        "takes": ", ".join(spec.name for spec in model.manifest.inputs),
        "gives": ", ".join(spec.name for spec in model.manifest.outputs),
        "runs on": f"{provider}, {threads} thread{'s' * (threads != 1)}"
        + ", all of them for a lone request" * model.graphs.is_multi_threaded
        + f"; {kernels.description()}" * model.session.has_kernels,
        "batches": f"{warmup.policy}; {bits}",
        "error": f"{error_text(report.worst)} at most, {budget_text(report.worst)} allowed "
        f"[dim]({len(report.findings)} comparisons with the reference)[/]",
    }


def _why_not(entry: "IndexEntry") -> str:
    return f"[red]{escape(entry.name)} version {entry.version}[/]: {escape(entry.reason or entry.state.value)}"


def _show(ready: "Ready", title: str = "READY") -> None:
    """The block that a start prints: what is served and where, and what is not served and why."""
    table = Table.grid(padding=(0, 2))
    for served in ready.served:
        for name, value in _model_rows(served).items():
            table.add_row(f"[dim]{name}[/]", value)
        table.add_row()
    for entry in ready.others:
        table.add_row("[dim]not served[/]", _why_not(entry))
    table.add_row("[dim]listens[/]", f"{ready.address} (gRPC, {ready.encryption})")
    table.add_row("[dim]metrics[/]", f"{ready.metrics} (Prometheus, HTTP)" if ready.metrics else "none")
    out.print(f"[bold green]{title}[/]")
    out.print(table)


@_from_settings
def serve(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file with settings by name, `port: 8001` say. Flags and variables go before it.",
            envvar=CONFIG,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load and verify everything, say what would be served and why not, and end.")
    ] = False,
    **values: Any,
) -> None:
    """Serve a bundle, or a repository of them, over gRPC, once answers are proven equal to the reference's on this very
    machine.

    The port opens at once and answers UNAVAILABLE; the health service says SERVING when every check has passed. SIGTERM
    finishes what is in flight. Each setting is also an environment variable, and a line of a file (--config).
    """
    from heed.bundle import BundleError
    from heed.server.errors import HeedError
    from heed.server.lifecycle import Server
    from heed.server.telemetry.logs import configure

    settings = _settings(config, values)
    configure(settings.log_format, settings.log_level)
    try:
        if check:
            return _check(settings)
        _run(Server(settings, on_ready=_show).serve)
    except (BundleError, HeedError, OSError) as error:
        fail(error)
    lost_output()  # what a server prints is not what it is for
    err.print("stopped")


def _check(settings: Settings) -> None:
    """Exit code 0: all of it would be served. 2: not all, or not at all."""
    from heed.server.lifecycle import Server

    failed: list[IndexEntry] = []

    def report(found: "Ready") -> None:
        _show(found, "would serve")
        failed.extend(entry for entry in found.others if entry.failed)

    _run(Server(settings, on_ready=report).check)
    if failed:
        raise typer.Exit(2)


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs on uvloop if it is installed: it takes less time per message."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main())
    else:
        uvloop.run(main())
