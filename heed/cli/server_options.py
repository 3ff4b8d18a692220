"""The options of every command that calls a server: encryption and authentication, and its errors in plain words."""

import functools
import inspect
import os
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
# What the client's errors advise, and the same in options of the command line.
OPTIONS = {
    "set the parameter truncate to true": "give --truncate",
    "give tls=True, or token_in_clear=True if something else protects the way there": "give --tls or --tls-ca",
}
# What gRPC says of a connection that failed, and what to do next.
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


def explain_error(error: object) -> str:
    """A client's error with the command line's options, and with the next step where one is known."""
    message = str(error)
    for words, option in OPTIONS.items():
        message = message.replace(words, option)
    hints = [hint for pattern, hint in HINTS.items() if re.search(pattern, message)]
    return "; ".join([message, *hints, *_proxy_hint(message)])


def _proxy_hint(message: str) -> list[str]:
    """gRPC's error has the proxy's address, and looks as if it were the server's. A proxy's URL may hold a password."""
    if "UNAVAILABLE" not in message:
        return []
    variables = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]
    return [
        f"{name} is set: gRPC calls other machines through that proxy; put the server's host into no_proxy"
        for name in variables[:1]
    ]


def _check_address(address: str) -> None:
    """Ends the command at an address that gRPC would misread: without a port it takes another one, a URL is a name."""
    if address.startswith(SCHEMES):
        return
    found = re.fullmatch(r"(?:\[[^\[\]\s]+\]|[^\[\]\s:/]+):(\d{1,5})", address)
    if not found or int(found[1]) >= 2**16:
        fail(f"expected HOST:PORT, localhost:8001 say, got {address}")


@dataclass(frozen=True)
class ServerOptions:
    """What a client needs to call a server, beside the address."""

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
        """Keyword arguments of a Client. The command ends if a file is missing or the options do not fit together."""
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
        """A Client, or an AsyncClient. The command ends if it cannot be created."""
        _check_address(address)
        try:
            return kind(address, model, timeout=timeout, **self.options())
        except (ValueError, OSError) as error:
            fail(explain_error(error))


def with_server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds these options to a command, which takes them together as `server`."""
    own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "server"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.annotation)
        for name, option in inspect.signature(ServerOptions).parameters.items()
    ]

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        server = ServerOptions(**{option.name: values.pop(option.name) for option in options})
        command(**values, server=server)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + options
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options
