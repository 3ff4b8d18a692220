"""The project's pages: their fenced blocks, and what is said above a block about who runs it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").rglob("*.md")]
)
# An HTML comment (or none) and a fence, perhaps indented, until the fence is closed.
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*?) -->\n+)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is the comment above it: `not run: WHY`, or `run by TEST`."""

    page: str
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page, all or those in some languages, in their order."""
    text = (ROOT / page).read_text("utf-8")
    found = [
        Block(page, text[: match.start("text")].count("\n"), match["language"], match["text"], match["mark"] or "")
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if block.language in languages or not languages]


def unmarked(page: str, language: str) -> list[Block]:
    """The blocks that whoever runs this page has to run."""
    return [block for block in blocks(page, language) if not block.mark]
