"""Serve PyTorch self-attention encoders over gRPC, with answers proven equal to the PyTorch reference.

What most programs need is here: the client, and what exports a model. Each is imported when it is first used, so that
a client loads no torch and no onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heed.extras import advice

if TYPE_CHECKING:
    from heed.client import AsyncClient, Client
    from heed.exporting import export_bundle
    from heed.model import load_checkpoint

__all__ = ["AsyncClient", "Client", "export_bundle", "load_checkpoint"]

# Where each is, and the extra that brings what it needs beside the client's packages.
_MODULES = {
    "AsyncClient": ("heed.client", None),
    "Client": ("heed.client", None),
    "export_bundle": ("heed.exporting", "export"),
    "load_checkpoint": ("heed.model", "export"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'heed' has no attribute {name!r}")
    module, extra = _MODULES[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if said := advice(error, extra):
            raise ModuleNotFoundError(said, name=error.name) from error
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
