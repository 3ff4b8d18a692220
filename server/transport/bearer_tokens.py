"""Bearer tokens: who may call, and who may load and unload models.

A token is a caller's whole proof, so it stays in its file: what is kept are digests, and no message, log line or repr
has either.
"""

import hmac
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
from grpc import StatusCode

from heed.server.errors import StartError
from heed.server.settings import Settings
from heed.server.transport.interceptors import CountRefusal, Refusal, is_probe, is_reflection, refuse
from heed.server.transport.reloaded_files import Reloaded, read_file

TOKENS, REPOSITORY_TOKENS = "--tokens", "--repository-tokens"
SHORTEST = 16  # characters: less can be guessed
MAKE_ONE = "`openssl rand -hex 32` makes a good one"

REPOSITORY_METHODS = frozenset(f"/inference.GRPCInferenceService/RepositoryModel{verb}" for verb in ("Load", "Unload"))


class Tokens:
    """Those of one file."""

    def __init__(self, tokens: list[str]) -> None:
        self._digests = [sha256(token.encode()).digest() for token in tokens]

    def __contains__(self, token: str) -> bool:
        """Takes the same time wherever, and whether, the token is found."""
        digest = sha256(token.encode()).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def read_tokens(setting: str, path: Path) -> Tokens:
    """One token on each line; empty lines and those that begin with # are left out.

    Raises:
        StartError: the file cannot be read, or has no token, or a line that is none; the message has the line's
            number, not the line.
    """
    tokens = []
    for number, raw in enumerate(read_file(setting, path).splitlines(), 1):
        line = raw.decode("ascii", "replace").strip()
        if not line or line.startswith("#"):
            continue
        if len(line) < SHORTEST or not all("!" <= character <= "~" for character in line):
            raise StartError(
                f"{setting} {path}, line {number}: a token is {SHORTEST} characters or more of ASCII without spaces; "
                + MAKE_ONE
            )
        tokens.append(line)
    if not tokens:
        raise StartError(f"{setting} {path} has no token; {MAKE_ONE}")
    return Tokens(tokens)


def _reloaded(setting: str, path: Path | None) -> Reloaded[Tokens] | None:
    return Reloaded(lambda: read_tokens(setting, path), [path]) if path else None


def _bearer(metadata: Any) -> str | None:
    """The token that a call brings. The scheme's name may be written in any case (RFC 9110)."""
    for key, value in metadata:
        if key == "authorization":
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None


NO_TOKEN = Refusal(
    StatusCode.UNAUTHENTICATED,
    "no token came; send the metadata `authorization: Bearer TOKEN` with each call",
    "unauthenticated",
)
UNKNOWN_TOKEN = Refusal(
    StatusCode.UNAUTHENTICATED,
    "the token is not one of this server's; whoever runs the server gives them out",
    "unauthenticated",
)
NOT_PERMITTED = Refusal(
    StatusCode.PERMISSION_DENIED,
    f"this token may not load or unload models; it takes one of the server's {REPOSITORY_TOKENS}",
    "permission_denied",
)


class Authorization(grpc.aio.ServerInterceptor):
    """Asks each call for its token, before anything of its message is read; a stream once."""

    def __init__(
        self,
        tokens: Reloaded[Tokens] | None,
        repository_tokens: Reloaded[Tokens] | None,
        is_open: Callable[[str], bool],
        count_refusal: CountRefusal,
    ) -> None:
        """
        Args:
            tokens: those for everything but loading and unloading; nothing if that is open to all.
            repository_tokens: those for everything; nothing if there are none of their own.
            is_open: whether a method needs no token.
        """
        self._tokens = tokens
        self._repository_tokens = repository_tokens
        self._is_open = is_open
        self._count_refusal = count_refusal

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        refusal = self._refusal(details.method, details.invocation_metadata)
        return refuse(refusal, self._count_refusal) if refusal else await continuation(details)

    def _refusal(self, method: str, metadata: Any) -> Refusal | None:
        controls_repository = method in REPOSITORY_METHODS and self._repository_tokens is not None
        if self._is_open(method) or (self._tokens is None and not controls_repository):
            return None
        token = _bearer(metadata)
        if token is None:
            return NO_TOKEN
        if self._repository_tokens and token in self._repository_tokens.value:
            return None
        if self._tokens and token in self._tokens.value:
            return NOT_PERMITTED if controls_repository else None
        return UNKNOWN_TOKEN


def authorization(settings: Settings, count_refusal: CountRefusal) -> Authorization | None:
    """What checks tokens; nothing if the settings name no file of them.

    Raises:
        StartError: a file is not what it should be, or nobody could load models though the settings allow it.
    """
    tokens = _reloaded(TOKENS, settings.tokens)
    repository_tokens = _reloaded(REPOSITORY_TOKENS, settings.repository_tokens)
    if tokens and settings.repository_control and not repository_tokens:
        raise StartError(
            f"--repository-control with {TOKENS} needs {REPOSITORY_TOKENS} too: the tokens of those who may load and "
            "unload models"
        )
    if not (tokens or repository_tokens):
        return None

    def is_open(method: str) -> bool:
        return (settings.open_health and is_probe(method)) or (settings.open_reflection and is_reflection(method))

    return Authorization(tokens, repository_tokens, is_open, count_refusal)
