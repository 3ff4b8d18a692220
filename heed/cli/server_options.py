"""The options of every command that calls a server: how to know it, and how to be known by it."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from heed.cli.console import check_file, fail, is_file

PANEL = "Security"
TLS_HELP = "The server speaks TLS; its certificate is of an authority that gRPC brings."
SCHEMES = ("dns://", "ipv4:", "ipv6:", "unix:")  # what gRPC takes beside HOST:PORT
# What is said to programs, and how the command line calls it.
OPTIONS = {
    "set the parameter truncate to true": "give --truncate",
    "give tls=True, or token_in_clear=True if something else protects the way there": "give --tls or --tls-ca",
}
# What gRPC says of a connection that did not come about, and what to do next.
HINTS = {
    "Connection refused": "is a server running there? heed serve BUNDLE starts one",
    "ipv6:%5B::1%5D.*Connection refused": (
        "if that was localhost: this is what its last address said, call 127.0.0.1 to hear the first one"
    ),
    "backends failing.*Socket closed": (
        "does it speak TLS (--tls, --tls-ca), or ask for a certificate (--tls-certificate, --tls-key)?"
    ),
    "WRONG_VERSION_NUMBER": "it speaks plain text; leave --tls and --tls-ca out",
    "CERTIFICATE_VERIFY_FAILED": "--tls-ca names who signed its certificate",
    "Hostname Verification": "its certificate is for another host; call it by a name in there",
}


def explained(error: object) -> str:
    """What a client says, in the words of the command line and with the next step where there is one."""
    said = str(error)
    for words, option in OPTIONS.items():
        said = said.replace(words, option)
    return "; ".join([said, *(hint for sign, hint in HINTS.items() if re.search(sign, said))])


def _check_address(address: str) -> None:
    """gRPC would take another port where there is none, and a URL for a name."""
    if address.startswith(SCHEMES):
        return
    found = re.fullmatch(r"(?:\[[^\[\]\s]+\]|[^\[\]\s:/]+):(\d{1,5})", address)
    if not found or int(found[1]) >= 2**16:
        fail(f"expected HOST:PORT, localhost:8001 say, got {address}")


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
        from heed.client import Tls

        check_file("--tls-ca", self.tls_ca)
        check_file("--tls-certificate", self.tls_certificate)
        check_file("--tls-key", self.tls_key)
        if self.token and not is_file(self.token):  # which may be the token itself: it is not repeated
            fail("--token (HEED_TOKEN) names a file that holds the token; it names none")
        try:
            files = Tls(self.tls_ca, self.tls_certificate, self.tls_key)
        except ValueError as error:
            fail(error)
        tls = files if any((self.tls_ca, self.tls_certificate, self.tls_key)) else self.tls
        return {"tls": tls, "token": self.token}

    def client(self, kind: Callable[..., Any], address: str, model: str, timeout: float) -> Any:
        """A Client, or an AsyncClient. What keeps it from being made ends the command."""
        _check_address(address)
        try:
            return kind(address, model, timeout=timeout, **self.options())
        except (ValueError, OSError) as error:
            fail(explained(error))


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
