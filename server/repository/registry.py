"""The versions of models that a server has, the state of each, and which of them answers a request."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from heed.bundle import Manifest
from heed.server.engine.model import Model
from heed.server.errors import FailedPrecondition, NotFound, Reason, Unavailable
from heed.server.repository.attention_weights import Attentions
from heed.server.repository.verification import VerifiedModel
from heed.server.requests.preprocess import Preprocessor
from heed.server.scheduling.scheduler import Scheduler
from heed.server.telemetry.metrics import VersionMetrics


class State(Enum):
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNAVAILABLE = "unavailable"


@dataclass(eq=False)
class ServedModel:
    """A model that is ready: its requests are prepared and scheduled here, whichever API they come through.

    Within a `with` the model is not closed, even if another version has taken its place.
    """

    model: Model
    scheduler: Scheduler  # of the plain answers
    attentions: Attentions
    preprocessor: Preprocessor
    metrics: VersionMetrics
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> "ServedModel":
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def attention_scheduler(self) -> Scheduler:
        """The scheduler of the attention weights. Raises FailedPrecondition: see `Attentions.loaded`."""
        return (await self.attentions.loaded())[0]

    async def close(self) -> None:
        """Returns when every admitted request is answered."""
        if self._users:
            await self._unused.wait()
        await self.scheduler.close()
        await self.attentions.close()


@dataclass(eq=False)
class ModelVersion:
    """One version of a model, from the moment its files are found until it is unloaded."""

    manifest: Manifest  # with the name and the version that callers use
    files: Any = None  # the state of its files when it was loaded
    state: State = State.LOADING
    verified: VerifiedModel | None = None
    served: ServedModel | None = None  # once it is ready
    recheck: asyncio.Task[None] | None = None
    drift: str = ""  # why its answers are refused: they are no longer its reference's

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version


class ModelRegistry:
    """Finds models by name and version. It belongs to the event loop's thread."""

    def __init__(self, default: str = "", on_drift: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            default: the model of callers who name none.
            on_drift: is called when `is_ready` may have changed, because a model drifted, or drifts no longer.
        """
        self._default = default
        self._on_drift = on_drift
        self._versions: list[ModelVersion] = []  # the newest first, and of one version what was added last
        self.failures: dict[tuple[str, int], str] = {}  # why a version is not served, by name and version
        self.ready = False  # whether the start is over, and the end has not begun

    def add(self, version: ModelVersion) -> None:
        self._versions.insert(0, version)
        self._versions.sort(key=lambda one: -one.version)  # stable

    def remove(self, version: ModelVersion) -> None:
        self._versions.remove(version)

    @property
    def is_ready(self) -> bool:
        """Whether callers should come here. A model that drifted casts doubt on the machine, and so on all of them."""
        return self.ready and not any(one.drift for one in self._versions if one.state is State.READY)

    def set_drift(self, version: ModelVersion, reason: str) -> None:
        """A model's answers are refused from now on; no longer if `reason` is empty."""
        version.drift = reason
        self._on_drift()

    def all(self, name: str = "") -> list[ModelVersion]:
        """Those of one model, or of all; the newest first."""
        return [one for one in self._versions if name in ("", one.name)]

    @property
    def names(self) -> list[str]:
        return sorted({one.name for one in self._versions if one.state is not State.UNLOADING})

    def find(self, name: str, version: str = "") -> ModelVersion:
        """The version that is requested, or else the newest that is ready.

        Args:
            name: empty for the default model.

        Raises:
            NotFound: there is no such model or version; the message says which there are.
            FailedPrecondition: there is, but it cannot be served; or no name came, and there are several models.
        """
        name = name or self._only()
        found = [one for one in self._versions if one.name == name and version in ("", str(one.version))]
        for state, drifted in ((State.READY, False), (State.READY, True), (State.LOADING, False)):
            for one in found:
                if one.state is state and bool(one.drift) is drifted:
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
        """The model that answers, for a `with`: it stays loaded until the end of that.

        Raises:
            NotFound, FailedPrecondition: see `find`.
            Unavailable: it is not ready yet, or drifted.
        """
        one = self.find(name, version)
        if one.state is not State.READY or one.served is None:
            reason: Reason = "loading" if one.state is State.LOADING else "draining"
            raise Unavailable(f"model {one.name!r} is {one.state.value}; try again, or another server", reason)
        if one.drift:
            raise Unavailable(
                f"model {one.name!r} is not served here for now: {one.drift}; call another server", "drifted"
            )
        return one.served
