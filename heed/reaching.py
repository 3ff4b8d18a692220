"""The options of every command that calls a server: how to know it, and how to be known by it."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from heed.console import fail

PANEL = "Security"
TLS_HELP = "The server speaks TLS; its certificate is of an authority that gRPC brings."


@dataclass(frozen=True)
class Reach:
    """What a client needs to know of a server beside its address."""

    tls: Annotated[bool, typer.Option("--tls", help=TLS_HELP, rich_help_panel=PANEL)] = False
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="The server speaks TLS; who signed its certificate (PEM).", rich_help_panel=PANEL),
    ] = None
    tls_certificate: Annotated[
        Path | None, typer.Option(help="The client's own certificate (PEM).", rich_help_panel=PANEL)
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="And its key.", rich_help_panel=PANEL)] = None
    token: Annotated[
        Path | None,
        typer.Option(help="A file with a bearer token.", envvar="HEED_TOKEN", rich_help_panel=PANEL),
    ] = None

    def options(self) -> dict[str, Any]:
        """Of a Client. What is wrong with them ends the command."""
        from client import Tls

        try:
            files = Tls(self.tls_ca, self.tls_certificate, self.tls_key)
        except ValueError as error:
            fail(error)
        tls = files if any((self.tls_ca, self.tls_certificate, self.tls_key)) else self.tls
        return {"tls": tls, "token": self.token}

    def client(self, kind: Callable[..., Any], address: str, model: str, timeout: float) -> Any:
        """A Client, or an AsyncClient. What keeps it from being made ends the command."""
        try:
            return kind(address, model, timeout=timeout, **self.options())
        except (ValueError, OSError) as error:
            fail(error)


def reaching(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options; it takes them together, as `reach`."""
    own = [one for one in inspect.signature(command).parameters.values() if one.name != "reach"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
        for name, one in inspect.signature(Reach).parameters.items()
    ]

    @functools.wraps(command)
    def reached(**values: Any) -> None:
        reach = Reach(**{option.name: values.pop(option.name) for option in options})
        command(**values, reach=reach)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + options
    reached.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    reached.__annotations__ = {one.name: one.annotation for one in parameters}
    return reached
