import asyncio
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heed.client import AsyncClient, Client
from tests.bundles import export_bundle
from tests.checkpoints import Task, save_family
from tests.support import Running, start_server, stop, wait_until_serving
from tests.tokenizers import save_wordpiece

# Embeds texts by a new client for the addresses, each given number of them in a call of its own.
Embed = Callable[..., list[np.ndarray]]


def by_client(addresses: str | Sequence[str], *calls: Iterable[str], **options: Any) -> list[np.ndarray]:
    with Client(addresses, "echo", **options) as client:
        return [client.embed(texts) for texts in calls]


def by_async_client(addresses: str | Sequence[str], *calls: Iterable[str], **options: Any) -> list[np.ndarray]:
    async def run() -> list[np.ndarray]:
        async with AsyncClient(addresses, "echo", **options) as client:
            return [await client.embed(texts) for texts in calls]

    return asyncio.run(run())


@pytest.fixture(params=[by_client, by_async_client], ids=["sync", "async"])
def embed(request: pytest.FixtureRequest) -> Embed:
    """Each client in turn."""
    found: Embed = request.param
    return found


@pytest.fixture(scope="session")
def models(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of minilm, and of small random models: sentiment, tagger and ranker."""
    folder = tmp_path_factory.mktemp("models")
    repository = folder / "repository"
    shutil.copytree(minilm_bundle, repository / "minilm" / "1")
    save_classifier(folder, repository, "sentiment", "sequence")
    save_classifier(folder, repository, "tagger", "token")
    save_classifier(folder, repository, "ranker", "sequence", id2label={0: "score"})
    server = start_server(repository, folder / "log", "--linger-seconds", "0", "--default-model", "minilm")
    try:
        wait_until_serving(server, 240)
        yield server
    finally:
        stop(server)


def save_classifier(folder: Path, repository: Path, name: str, task: Task, **labels: Any) -> None:
    source = folder / name
    source.mkdir()
    size = save_wordpiece(source)
    save_family(source, "bert", task, vocab_size=size, **labels)
    (repository / name).mkdir()
    export_bundle(source, repository / name / "1", name)
