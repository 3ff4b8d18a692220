"""The calls of Triton that heed does not have: each says what to do instead."""

from collections.abc import Awaitable, Callable
from typing import Any

from heed.server.errors import Unimplemented

SHARED_MEMORY = (
    "there is no shared memory here, the server may be on another machine: send tensors in raw_input_contents and read "
    "them from raw_output_contents"
)
TRACES = "traces cannot be set by callers: the operator does so when the server starts, see `heed serve --help`"
LOGS = "logs cannot be set by callers: the operator does so when the server starts, see `heed serve --help`"


def _unimplemented(instead: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: object, request: object, context: object) -> None:
        raise Unimplemented(instead)

    return method


class UnimplementedCalls:
    SystemSharedMemoryStatus = _unimplemented(SHARED_MEMORY)
    SystemSharedMemoryRegister = _unimplemented(SHARED_MEMORY)
    SystemSharedMemoryUnregister = _unimplemented(SHARED_MEMORY)
    CudaSharedMemoryStatus = _unimplemented(SHARED_MEMORY)
    CudaSharedMemoryRegister = _unimplemented(SHARED_MEMORY)
    CudaSharedMemoryUnregister = _unimplemented(SHARED_MEMORY)
    TraceSetting = _unimplemented(TRACES)
    LogSettings = _unimplemented(LOGS)
