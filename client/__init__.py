"""A small Python client: text or arrays in, numpy out.

from client import Client

with Client("localhost:8001", "minilm") as client:
    vectors = client.embed(["good morning", "早上好"])
"""

from client.aio import AsyncClient
from client.answers import Label, Rank, Tag
from client.connection import Tls
from client.sync import Client
from client.wire import Answer, CallError, ModelInfo

__all__ = ["Answer", "AsyncClient", "CallError", "Client", "Label", "ModelInfo", "Rank", "Tag", "Tls"]
