"""The kserve package's client for gRPC. It wants other versions of its libraries than heed does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers.catalog import PEERS, ROOT
from bench.peers.install import Failure, install
from heed.client import Client
from tests.clients.support import heard_by
from tests.support import Running

pytestmark = pytest.mark.long

IDS = np.array([[2, 5, 9, 3], [2, 6, 3, 3]])


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the environment that the benchmarks use."""
    (kserve,) = (peer for peer in PEERS if peer.name == "kserve")
    folder = ROOT / "build" / "peers" / "venvs" / "kserve"
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return install(kserve, folder, tmp_path_factory.mktemp("kserve") / "pip.log")
    except Failure as failure:
        pytest.skip(f"kserve cannot be installed: {failure.reason}")


@pytest.mark.timeout(1200)
def test_its_grpc_client(server: Running, python: Path) -> None:
    heard: dict[str, Any] = heard_by("kserve_grpc", server.address, python=[str(python)])
    with Client(server.address, "tiny") as client:

        def vectors(**inputs: Any) -> Any:
            return client.infer(inputs, ["sentence_embedding"])["sentence_embedding"].tolist()

        ids, texts = vectors(input_ids=IDS), vectors(text=["the quick fox", "a dog"])
    assert (heard["live"], heard["ready"], heard["model_ready"]) == (True, True, True)
    assert heard["raw"] == heard["int32"] == heard["typed"] == ids
    assert heard["text"] == texts
    assert np.shape(heard["truncated"]) == (1, 32)
    assert heard["too_long"]["status"] == "INVALID_ARGUMENT"
    assert "at most 40" in heard["too_long"]["message"]
