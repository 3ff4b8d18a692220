"""What Triton has and heed has not: each call says what to do instead."""

from collections.abc import Awaitable, Callable
from typing import Any

from heed.server.errors import Unimplemented
from heed.server.transport.status import guarded

SHARED_MEMORY = (
    "there is no shared memory here, the server may be on another machine: send tensors in raw_input_contents and read "
    "them from raw_output_contents"
)
TRACES = "traces cannot be set by callers: the operator does so when the server starts, see `heed serve --help`"
LOGS = "logs cannot be set by callers: the operator does so when the server starts, see `heed serve --help`"


def _absent(instead: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: object, request: object, context: object) -> None:
        raise Unimplemented(instead)

    return guarded(method)


class AbsentCalls:
    SystemSharedMemoryStatus = _absent(SHARED_MEMORY)
    SystemSharedMemoryRegister = _absent(SHARED_MEMORY)
    SystemSharedMemoryUnregister = _absent(SHARED_MEMORY)
    CudaSharedMemoryStatus = _absent(SHARED_MEMORY)
    CudaSharedMemoryRegister = _absent(SHARED_MEMORY)
    CudaSharedMemoryUnregister = _absent(SHARED_MEMORY)
    TraceSetting = _absent(TRACES)
    LogSettings = _absent(LOGS)
