"""What the README shows is run, each snippet in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Running

ROOT = Path(__file__).parent.parent
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: str(snippet).split("\n", 1)[0])
def test_a_snippet_gets_two_vectors(snippet: str, minilm_server: Running) -> None:
    program = snippet.replace("localhost:8001", minilm_server.address)
    assert program != snippet
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(2, 384)" in done.stdout


def test_the_readme_shows_both_clients() -> None:
    assert [("tritonclient" in snippet, "from client import" in snippet) for snippet in SNIPPETS] == [
        (False, True),
        (True, False),
    ]


def test_every_linked_file_exists() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
