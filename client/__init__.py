"""A small Python client: text or arrays in, numpy out, deadlines and retries by gRPC itself.

from client import Client

with Client("localhost:8001", "minilm") as client:
    vectors = client.embed(["good morning", "早上好"])
"""

from client.aio import AsyncClient
from client.sync import Client
from client.wire import Answer, CallError, Label, ModelInfo

__all__ = ["Answer", "AsyncClient", "CallError", "Client", "Label", "ModelInfo"]
