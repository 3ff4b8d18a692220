"""The repository of models: what there is, and loading and unloading where an operator allows it."""

from collections.abc import Mapping
from typing import Any

import grpc

from heed.protos import open_inference_pb2 as pb
from heed.server.errors import InvalidArgument, NotFound
from heed.server.repository.model_repository import ModelRepository
from heed.server.repository.registry import State

Context = grpc.aio.ServicerContext[Any, Any]


def _check_parameters(parameters: Mapping[str, pb.ModelRepositoryParameter], known: tuple[str, ...]) -> None:
    for name in parameters:
        if name not in known:
            raise InvalidArgument(
                f"parameter {name!r} is not taken: what a model is stands in its bundle, and nowhere else; leave it out"
            )


def _check_repository(name: str) -> None:
    if name:
        raise NotFound(f"there is no repository {name!r}; there is one only, leave repository_name empty")


class RepositoryCalls:
    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for entry in await self._repository.index():
            if entry.state is State.READY or not request.ready:
                state = entry.state.name  # Triton's words are the same
                response.models.add(name=entry.name, version=str(entry.version), state=state, reason=entry.reason)
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        _check_parameters(request.parameters, ())
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        _check_parameters(request.parameters, ("unload_dependents",))  # tritonclient always says it; nothing depends
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()
