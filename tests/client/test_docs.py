"""What docs/clients.md and docs/deployment.md show: Python is run, the rest is what lies in examples/ and deploy/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.test_security import Authority
from tests.pages import ROOT, Block, unmarked
from tests.support import Running

PAGES = ["docs/clients.md", "docs/deployment.md"]
SNIPPETS = [block for page in PAGES for block in unmarked(page, "python")]
SHOWN = [
    *(ROOT / "examples" / "clients").iterdir(),
    *(ROOT / "deploy" / name for name in ("nginx.conf", "heed-servers.conf", "haproxy.cfg")),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates and a token."""
    folder = tmp_path_factory.mktemp("files")
    Authority(folder).sign("client")
    (folder / "token").write_text("secret")
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_runs(snippet: Block, models: Running, files: Path) -> None:
    program = snippet.text.replace("localhost:8001", models.address)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=files, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", SHOWN, ids=lambda file: str(file.name))
def test_a_file_is_shown_as_it_is(file: Path) -> None:
    assert any(f"\n{file.read_text()}```" in (ROOT / page).read_text() for page in PAGES)
