"""The output of commands: results on stdout, everything else on stderr."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


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


@contextmanager
def stages(first: str) -> Iterator[Callable[[str], None]]:
    """Shows the current step with a spinner, and each finished one with the time it took.

    Yields a function that begins the next step, by its name. The last step is finished unless an error is raised.
    """
    current, started = first, perf_counter()
    with err.status(current) as status:

        def done() -> None:
            err.print(f"[green]✓[/] {current} [dim]{perf_counter() - started:.1f} s[/]")

        def step(name: str) -> None:
            nonlocal current, started
            done()
            current, started = name, perf_counter()
            status.update(name)

        yield step
        done()
