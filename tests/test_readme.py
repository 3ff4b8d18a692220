"""What the README and the page on attention show is run, each snippet in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Running

ROOT = Path(__file__).parent.parent


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


SNIPPETS = snippets("README.md")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: str(snippet).split("\n", 1)[0])
def test_a_snippet_gets_two_vectors(snippet: str, minilm_server: Running) -> None:
    program = snippet.replace("localhost:8001", minilm_server.address)
    assert program != snippet
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(2, 384)" in done.stdout


@pytest.mark.parametrize("snippet", snippets("docs/attention.md"), ids=lambda snippet: str(snippet).split("\n", 1)[0])
def test_a_snippet_about_attention_runs(snippet: str, tmp_path: Path) -> None:
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("ok\n"), done.stderr


def test_the_readme_shows_both_clients() -> None:
    assert [("tritonclient" in snippet, "from heed import" in snippet) for snippet in SNIPPETS] == [
        (False, True),
        (True, False),
    ]
