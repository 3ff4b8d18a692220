"""The output of commands: results on stdout, everything else on stderr."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
QUIET_SECONDS = 15  # the longest that a long step says nothing in a log


def fail(message: object) -> NoReturn:
    """Prints an error and ends the command with exit code 2."""
    err.print(f"[bold red]error:[/] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(2)


def is_file(path: Path) -> bool:
    """Whether a file or a pipe exists. Unlike pathlib this takes strings of any length, which may be no path at all."""
    return os.path.exists(path) and not os.path.isdir(path)


def check_file(option: str, path: Path | None) -> None:
    """Ends the command if an option names a file that is not there."""
    if path is not None and not is_file(path):
        fail(f"{option} {path}: there is no such file")


class Stages:
    """Shows the current step with a spinner, and each finished one with the time it took."""

    def __init__(self, first: str, status: Status) -> None:
        self._status, self._current, self._started, self._told = status, first, perf_counter(), perf_counter()

    def step(self, name: str) -> None:
        """The current step is done, and this one begins."""
        self.done()
        self._current, self._started, self._told = name, perf_counter(), perf_counter()
        self._status.update(name)

    def progress(self, share: float) -> None:
        """So much of the current step is done. Where nobody sees a spinner, in a log, a line now and then says it."""
        if err.is_terminal:
            self._status.update(f"{self._current} [dim]{share:.0%}[/]")
        elif perf_counter() - self._told > QUIET_SECONDS:
            self._told = perf_counter()
            err.print(f"  {self._current}: {share:.0%} after {self._told - self._started:.0f} s")

    def done(self) -> None:
        """The current step is done."""
        err.print(f"[green]✓[/] {self._current} [dim]{perf_counter() - self._started:.1f} s[/]")


@contextmanager
def stages(first: str) -> Iterator[Stages]:
    """Shows steps one after another. The last step is finished unless an error is raised."""
    with err.status(first) as status:
        shown = Stages(first, status)
        yield shown
        shown.done()
