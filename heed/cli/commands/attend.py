import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from rich.style import Style
from rich.table import Table
from rich.text import Text

from heed.cli.console import err, fail, out
from heed.cli.server_options import ServerOptions, explain_error, with_server_options
from heed.cli.token_text import readable_tokens
from heed.client.wire import Answer, texts_and_pairs

CELL, WIDEST_CELL = 5, 12  # characters: a blank and 0.00, or as much of a token as there is room for
LABEL = 16  # characters of a token's row
SHOWN_ROWS = 64
PALE, DARK = (247, 251, 255), (8, 81, 156)  # the picture's colours for nothing and for the greatest weight
ALL = "all"


@dataclass(frozen=True)
class Weights:
    """Heads of layers, chosen from an answer. K layers, N heads, L tokens."""

    values_KNLL: np.ndarray
    labels: list[str]
    layers: list[int]  # counted from 1, like the heads
    heads: list[int]

    @property
    def name(self) -> str:
        return f"{_names('layer', self.layers)}, {_names('head', self.heads)}"


@with_server_options
def attend(
    *,
    server: ServerOptions,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    model: Annotated[str, typer.Argument(help="The model's name.")],
    text: Annotated[str, typer.Argument(help="The text whose tokens attend to each other.")],
    pair: Annotated[str | None, typer.Option(help="A second text, for models that read pairs.")] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="N|all", help="Which layer, counted from 1; without it the last.")
    ] = None,
    head: Annotated[str, typer.Option(metavar="N|all", help="Which head, counted from 1.")] = ALL,
    picture: Annotated[
        Path | None, typer.Option("--out", help="Draw every chosen head into this file: .png, .svg, .pdf and others.")
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut a text that is too long.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every chosen weight, for programs.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait, retries included.")] = 30.0,
) -> None:
    """Show how much each token of a text attends to each: as a table, and with --out as a picture.

    [dim]heed attend localhost:8001 minilm "How do I get my money back?" --layer all --out attention.png[/]
    """
    from heed.cli.drawing import CannotDraw, check_can_draw
    from heed.client import CallError, Client

    texts = [text] if pair is None else [text, pair]
    try:
        if picture:
            check_can_draw(picture)
        with server.client(Client, address, model, timeout) as client:
            inputs = texts_and_pairs([text], None if pair is None else [pair])
            answer = client.infer(inputs, ["attentions", "tokens", "offsets"], truncate)
    except (CallError, CannotDraw, ValueError) as error:
        fail(explain_error(error))
    weights = _chosen(answer, texts, layer, head)
    if as_json:
        print(json.dumps(_as_json(model, answer, weights)))
    else:
        _show(model, answer, weights)
    if picture:
        _draw(picture, model, weights)


def _chosen(answer: Answer, texts: Sequence[str], layer: str | None, head: str) -> Weights:
    attentions_KNLL = answer["attentions"][0]
    layers = _numbers("layer", layer or str(len(attentions_KNLL)), attentions_KNLL.shape[0])
    heads = _numbers("head", head, attentions_KNLL.shape[1])
    values_KNLL = attentions_KNLL[np.ix_(np.array(layers) - 1, np.array(heads) - 1)]
    return Weights(values_KNLL, readable_tokens(_tokens(answer), answer["offsets"][0].tolist(), texts), layers, heads)


def _tokens(answer: Answer) -> list[str]:
    """As the tokenizer writes them."""
    return [str(token) for token in answer["tokens"][0]]


def _numbers(what: str, given: str, count: int) -> list[int]:
    """What `--layer` or `--head` chooses."""
    if given == ALL:
        return list(range(1, count + 1))
    if given.isdecimal() and 1 <= int(given) <= count:
        return [int(given)]
    fail(f"--{what} {given}: this model has {what}s 1 to {count}; choose one of them, or {ALL}")


def _names(what: str, numbers: Sequence[int]) -> str:
    return f"{what} {numbers[0]}" if len(numbers) == 1 else f"{what}s {numbers[0]} to {numbers[-1]}"


def _as_json(model: str, answer: Answer, weights: Weights) -> dict[str, object]:
    return {
        "model": model,
        "digest": answer.digest,
        "provider": answer.provider,
        "tokens": _tokens(answer),
        "offsets": answer["offsets"][0].tolist(),
        "layers": weights.layers,
        "heads": weights.heads,
        "attentions": weights.values_KNLL.tolist(),
    }


def _show(model: str, answer: Answer, weights: Weights) -> None:
    layers, heads = weights.values_KNLL.shape[:2]
    mean = "" if layers * heads == 1 else f"the mean of {layers * heads} heads: "
    out.print(f"[bold]{escape(model)}[/] {mean}{weights.name} [dim](row: query, column: key)[/]")
    mean_LL = weights.values_KNLL.mean((0, 1))
    room = out.width - LABEL - 4  # beside a number of two digits and blanks
    keys = _fitting(mean_LL, room // CELL)
    wanted = 1 + max(cell_len(weights.labels[key]) for key in keys)
    cell = max(CELL, min(wanted, room // len(keys), WIDEST_CELL))
    out.print(_table(mean_LL[:SHOWN_ROWS], weights.labels, keys, cell))
    _say_what_is_left_out(weights, len(keys))
    milliseconds = f"queue {answer.queue_seconds * 1e3:.1f} ms, compute {answer.compute_seconds * 1e3:.1f} ms"
    err.print(f"[dim]{answer.provider}, {answer.precision}, bundle {answer.digest[:19]}; {milliseconds}[/]")


def _fitting(weights_LL: np.ndarray, room: int) -> list[int]:
    """The keys for which there is room: those that get the most attention, in the order of the text."""
    received_L = weights_LL.sum(0)
    return sorted(np.argsort(-received_L, kind="stable")[: max(room, 1)].tolist())


def _say_what_is_left_out(weights: Weights, columns: int) -> None:
    tokens = len(weights.labels)
    if columns < tokens:
        err.print(f"[dim]left out: {tokens - columns} of {tokens} keys, those that get the least attention[/]")
    if tokens > SHOWN_ROWS:
        err.print(f"[dim]left out: queries {SHOWN_ROWS + 1} to {tokens}[/]")
    if columns < tokens or tokens > SHOWN_ROWS:
        err.print("[dim]--out draws all of them, --json has every weight[/]")
    elif weights.values_KNLL.shape[:2] != (1, 1):
        err.print("[dim]--layer and --head choose one or all, --out FILE.png draws each head[/]")


def _table(weights_QL: np.ndarray, labels: Sequence[str], keys: Sequence[int], cell: int) -> Table:
    """A row for each query; the columns are `keys`, `cell` characters wide. Both carry the token's number, from 1."""
    table = Table(box=None, pad_edge=False, padding=0, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for key in keys:
        table.add_column(f"{key + 1}\n{escape(_short(labels[key], cell - 1))}", "", justify="right", min_width=cell)
    greatest = float(weights_QL.max()) or 1.0
    for query, weights_L in enumerate(weights_QL):
        cells = [_cell(float(weights_L[key]), greatest, cell) for key in keys]
        table.add_row(str(query + 1), Text(f" {_short(labels[query], LABEL)} "), *cells)
    return table


def _short(label: str, width: int) -> str:
    return label if cell_len(label) <= width else set_cell_size(label, width - 1).rstrip() + "…"


def _cell(weight: float, greatest: float, width: int) -> Text:
    """A number on its shade."""
    share = weight / greatest
    red, green, blue = (round(pale + share * (dark - pale)) for pale, dark in zip(PALE, DARK, strict=True))
    style = Style(color="white" if share > 0.5 else "black", bgcolor=f"rgb({red},{green},{blue})")
    return Text(f"{weight:{width}.2f}", style)


def _draw(path: Path, model: str, weights: Weights) -> None:
    from heed.cli.drawing import draw_attention

    title = f"{model}: {weights.name}"
    try:
        missing = draw_attention(path, weights.values_KNLL, weights.labels, weights.layers, weights.heads, title)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror or error}")
    if missing:
        err.print(
            f"[yellow]no font at hand has all of: {', '.join(missing)}[/]; the letters that are missing are drawn as "
            "their code points. More fonts come with pip install 'heed-serve\\[plots]'",
            soft_wrap=True,
        )
    err.print(f"drawn: {escape(str(path))}", soft_wrap=True)
