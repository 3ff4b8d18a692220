import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import export_bundle
from tests.oracle import save
from tests.support import Running, run_server


@pytest.fixture(scope="session")
def seen_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random ViT that sorts images of 8 x 8 by its labels."""
    source = save(
        tmp_path_factory.mktemp("seen"),
        "ViTForImageClassification",
        "ViTConfig",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_channels=3,
    )
    return export_bundle(source, tmp_path_factory.mktemp("bundles") / "seen")


@pytest.fixture(scope="module")
def controlled(seen_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A repository of `seen` alone, which callers may load and unload."""
    repository = tmp_path_factory.mktemp("controlled")
    shutil.copytree(seen_bundle, repository / "seen" / "1")
    with run_server(repository, tmp_path_factory.mktemp("servers") / "log", "--repository-control") as running:
        yield running


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, seen_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A repository of two models: `tiny` takes texts and ids, `seen` takes images."""
    repository = tmp_path_factory.mktemp("repository")
    for name, bundle in {"tiny": tiny_bundle, "seen": seen_bundle}.items():
        shutil.copytree(bundle, repository / name / "1")
    log = tmp_path_factory.mktemp("servers") / "clients.log"
    with run_server(repository, log, "--recheck-seconds", "0") as running:  # nothing is computed but for callers
        yield running
