"""A small Python client: text or arrays in, numpy out.

from heed.client import Client

with Client("localhost:8001", "minilm") as client:
    vectors = client.embed(["good morning", "早上好"])
"""

from heed.client.aio import AsyncClient
from heed.client.answers import Label, Rank, Tag
from heed.client.connection import Tls
from heed.client.sync import Client
from heed.client.wire import Answer, CallError, ModelInfo

__all__ = ["Answer", "AsyncClient", "CallError", "Client", "Label", "ModelInfo", "Rank", "Tag", "Tls"]
