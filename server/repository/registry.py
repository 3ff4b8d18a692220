"""The models a server has, what state each is in, and which of them answers whom."""

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import Any

from heed.bundle import Manifest
from heed.server.errors import FailedPrecondition, NotFound, Reason, Unavailable
from heed.server.repository.loading import VerifiedModel
from heed.server.repository.served_model import ServedModel


class State(Enum):
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNAVAILABLE = "unavailable"


@dataclass(eq=False)
class ModelVersion:
    """One version's place. Something serves there from the moment it is ready."""

    manifest: Manifest  # with the name and the version that callers use
    files: Any = None  # what its files looked like when it was loaded
    state: State = State.LOADING
    loaded: VerifiedModel | None = None
    serving: ServedModel | None = None
    recheck: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version


class ModelRegistry:
    """Finds models by name and version. It belongs to the event loop's thread."""

    def __init__(self, default: str = "") -> None:
        """`default` is the model of callers who name none."""
        self._default = default
        self._served: list[ModelVersion] = []  # the newest first, and of one version what was added last
        self.failures: dict[tuple[str, int], str] = {}  # why a version is not served, by name and version
        self.ready = False  # whether the start is over, and the end has not begun

    def add(self, served: ModelVersion) -> None:
        self._served.insert(0, served)
        self._served.sort(key=lambda one: -one.version)  # stable

    def remove(self, served: ModelVersion) -> None:
        self._served.remove(served)

    def all(self, name: str = "") -> list[ModelVersion]:
        """Those of one model, or of all; the newest first."""
        return [one for one in self._served if name in ("", one.name)]

    @property
    def names(self) -> list[str]:
        return sorted({one.name for one in self._served if one.state is not State.UNLOADING})

    def find(self, name: str, version: str = "") -> ModelVersion:
        """The version that is asked for, or else the newest that is ready.

        Args:
            name: empty for the default model.

        Raises:
            NotFound: there is no such model or version; the message says which there are.
            FailedPrecondition: there is, but it cannot be served; or no name came, and there are several models.
        """
        name = name or self._only()
        for state in (State.READY, State.LOADING):
            for one in self._served:
                if one.state is state and one.name == name and version in ("", str(one.version)):
                    return one
        raise self._nothing(name, version)

    def _only(self) -> str:
        """The model of callers who name none."""
        if self._default:
            return self._default
        if len(self.names) != 1:
            raise FailedPrecondition(
                f"{len(self.names)} models are served here ({', '.join(self.names)}), and the call names none; "
                "`heed serve --default-model NAME` chooses one"
            )
        return self.names[0]

    def _nothing(self, name: str, version: str) -> NotFound | FailedPrecondition:
        for (failed, number), reason in self.failures.items():
            if failed == name and version in ("", str(number)):
                return FailedPrecondition(f"version {number} of model {name!r} is not served: {reason}")
        if name in self.names:
            known = ", ".join(str(one.version) for one in self.all(name) if one.state is not State.UNLOADING)
            return NotFound(f"version {version!r} of model {name!r} is not served here, only {known}")
        others = f"only {', '.join(self.names)}" if self.names else "and no other is"
        return NotFound(f"model {name!r} is not served here, {others}")

    def use(self, name: str, version: str = "") -> ServedModel:
        """What answers as this model, for a `with`: it stays until its end, whatever takes its place.

        Raises:
            NotFound, FailedPrecondition: see `find`.
            Unavailable: it is not ready yet.
        """
        one = self.find(name, version)
        if one.state is not State.READY or one.serving is None:
            reason: Reason = "loading" if one.state is State.LOADING else "draining"
            raise Unavailable(f"model {one.name!r} is {one.state.value}; try again, or another server", reason)
        return one.serving
