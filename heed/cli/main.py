"""`heed`: the commands, their help and their exit codes.

0: done. 1: a check did not hold. 2: it could not be done; the message says why. An error that nobody foresaw is 2 too.
130 and 143: stopped by Ctrl-C or SIGTERM; nothing is left half-done. (A server that they stop has done its work: 0.)
"""

from importlib import import_module
from importlib.metadata import version
from inspect import getdoc
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from heed.cli.console import fail, out
from heed.extras import advice

COMMANDS = ("export", "inspect", "verify", "diff", "serve", "call", "attend", "bench")
EXAMPLE = "[dim]"  # begins the lines of a help text that are commands
HELP = """Serve PyTorch self-attention encoders over gRPC, with answers proven equal to the PyTorch reference.

[bold]export[/] a checkpoint to a bundle, [bold]inspect[/] what it is, [bold]verify[/] it against the reference's own
answers, see with [bold]diff[/] how far another bundle's are from them, [bold]serve[/] it, [bold]call[/] it,
[bold]bench[/] it, and see with [bold]attend[/] how its tokens look at each other.
"""


def flowing(text: str) -> str:
    """A help text with each paragraph in one line, which the terminal wraps."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(each if each.startswith(EXAMPLE) else each.replace("\n", " ") for each in paragraphs)


class Commands(TyperGroup):
    """Imports the module of a command when it is used: a server's start does not wait for plotting libraries."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = cast(Any, dict.fromkeys(COMMANDS))  # the names, for help and for suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        alone = typer.Typer(rich_markup_mode="rich", pretty_exceptions_show_locals=False, add_completion=False)
        command = getattr(import_module(f"heed.cli.commands.{cmd_name}"), cmd_name)
        alone.command(cmd_name, help=flowing(getdoc(command) or ""))(command)
        return get_command(alone)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if not (message := advice(error)):
                raise
            fail(message)


app = typer.Typer(
    name="heed",
    cls=Commands,
    help=flowing(HELP),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        out.print(f"heed {version('heed-serve')}")
        raise typer.Exit


@app.callback()
def heed(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of `heed` itself."""
