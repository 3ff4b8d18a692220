"""What tests of several commands need."""

import re
from dataclasses import dataclass

from typer.testing import CliRunner

from heed.cli.main import app


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What went to stderr, in one line."""
        return " ".join(self.err.split())

    @property
    def shown(self) -> str:
        """What went to stdout, in one line."""
        return " ".join(self.out.split())


def heed(*arguments: object) -> Done:
    """Runs a command in this process. What is raised and not caught is raised here too."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, without_colours(result.stdout), without_colours(result.stderr))


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
