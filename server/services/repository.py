"""The repository of models: what there is, and loading and unloading where an operator allows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import grpc

from protos import open_inference_pb2 as pb
from server.errors import FailedPrecondition, InvalidArgument, NotFound
from server.registry import Registry, State
from server.services.guard import guarded

Context = grpc.aio.ServicerContext[Any, Any]

# Triton's words; whatever else a version is, it cannot be asked.
STATES = {"READY": "READY", "LOADING": "LOADING", "DRAINING": "UNLOADING"}


class Entry(Protocol):
    """One version of a model."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def state(self) -> Enum: ...
    @property
    def reason(self) -> str:
        """Why it is not ready; empty if it is."""


class Repository(Protocol):
    async def index(self) -> Sequence[Entry]:
        """Every version there is."""

    async def load(self, name: str) -> None:
        """Returns when the newest version is ready. Raises HeedError."""

    async def unload(self, name: str) -> None:
        """Returns when nothing of the model is served any more. Raises HeedError."""


def _check_parameters(parameters: Mapping[str, pb.ModelRepositoryParameter], known: tuple[str, ...]) -> None:
    for name in parameters:
        if name not in known:
            raise InvalidArgument(
                f"parameter {name!r} is not taken: what a model is stands in its bundle, and nowhere else; leave it out"
            )


def _check_repository(name: str) -> None:
    if name:
        raise NotFound(f"there is no repository {name!r}; there is one only, leave repository_name empty")


@dataclass(frozen=True)
class Known:
    """An entry for what a registry holds."""

    name: str
    version: str
    state: State
    reason: str = ""


class Fixed:
    """The repository of a server whose models are those it started with."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def index(self) -> list[Known]:
        return [Known(one.name, one.version, one.state) for one in self._registry.served]

    async def load(self, name: str) -> None:
        raise FailedPrecondition(f"model {name!r} cannot be loaded: this server has no repository to load it from")

    async def unload(self, name: str) -> None:
        raise FailedPrecondition(
            f"model {name!r} cannot be unloaded: this server has no repository to load it from again"
        )


class RepositoryCalls:
    def __init__(self, repository: Repository, control: bool) -> None:
        """`control`: whether callers may load and unload."""
        self._repository = repository
        self._control = control

    @guarded
    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for entry in await self._repository.index():
            state = STATES.get(entry.state.name, "UNAVAILABLE")
            if state == "READY" or not request.ready:
                response.models.add(name=entry.name, version=entry.version, state=state, reason=entry.reason)
        return response

    @guarded
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        self._check_control(request.repository_name)
        _check_parameters(request.parameters, ())
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    @guarded
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        self._check_control(request.repository_name)
        _check_parameters(request.parameters, ("unload_dependents",))  # tritonclient always says it; nothing depends
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _check_control(self, repository: str) -> None:
        if not self._control:
            raise FailedPrecondition(
                "callers may not load or unload models here; --repository-control allows it, if an operator wants that"
            )
        _check_repository(repository)
