"""What the README and the page on attention show is run, each snippet in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, Block, unmarked
from tests.support import Running

SNIPPETS = unmarked("README.md", "python")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_gets_two_vectors(snippet: Block, minilm_server: Running) -> None:
    program = snippet.text.replace("localhost:8001", minilm_server.address)
    assert program != snippet.text
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(2, 384)" in done.stdout


@pytest.mark.parametrize("snippet", unmarked("docs/attention.md", "python"), ids=str)
def test_a_snippet_about_attention_runs(snippet: Block, tmp_path: Path) -> None:
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", snippet.text], cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("ok\n"), done.stderr


def test_the_readme_shows_both_clients() -> None:
    assert [("tritonclient" in snippet.text, "from heed import" in snippet.text) for snippet in SNIPPETS] == [
        (False, True),
        (True, False),
    ]
