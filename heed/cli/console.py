"""How commands speak: results on stdout, everything else on stderr."""

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
    """Says what went wrong and leaves with exit code 2."""
    err.print(f"[bold red]error:[/] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(2)


def is_file(path: Path) -> bool:
    """Whether there is one, a pipe included. Unlike pathlib this takes names of any length: some are no names."""
    return os.path.exists(path) and not os.path.isdir(path)


def check_file(option: str, path: Path | None) -> None:
    """Ends the command if an option names a file that is not there."""
    if path is not None and not is_file(path):
        fail(f"{option} {path}: there is no such file")


@contextmanager
def stages(first: str) -> Iterator[Callable[[str], None]]:
    """Shows the step at work with a spinner, and each finished one with the time it took.

    What is yielded is called with the next step's name. The last step counts as finished unless an error leaves.
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
