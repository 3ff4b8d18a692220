"""`heed`: the commands, their help and their exit codes.

0: done. 1: a check did not hold. 2: it could not be done; the message says why.
130 and 143: stopped by Ctrl-C or SIGTERM; nothing is left half-done. (A server that they stop has done its work: 0.)
"""

import typer

from heed.commands.attend import attend
from heed.commands.bench import bench
from heed.commands.call import call
from heed.commands.diff import diff
from heed.commands.export import export
from heed.commands.inspect import inspect
from heed.commands.serve import serve
from heed.commands.verify import verify

HELP = """Serve PyTorch self-attention encoders over gRPC, with answers proven equal to the PyTorch reference.

[bold]export[/] a checkpoint to a bundle, [bold]inspect[/] what it is, [bold]verify[/] it against the reference's own
answers, see with [bold]diff[/] how far another bundle's are from them, [bold]serve[/] it, [bold]call[/] it,
[bold]bench[/] it, and see with [bold]attend[/] how its tokens look at each other.
"""

app = typer.Typer(
    name="heed", help=HELP, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_show_locals=False
)
for command in (export, inspect, verify, diff, serve, call, attend, bench):
    app.command()(command)
