import json
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from client.wire import Answer
from heed.console import err, fail, out

SHOWN_VALUES = 2  # of each vector


def call(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    model: Annotated[str, typer.Argument(help="The model's name.")],
    text: Annotated[list[str], typer.Option("--text", "-t", help="A text; repeat it to compare several.")],
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait, retries included.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Every value, for programs.")] = False,
) -> None:
    """Ask a server for the vectors of texts, and show how alike they are.

    [dim]heed call localhost:8001 minilm -t "How do I get my money back?" -t "What is your refund policy?"[/]
    """
    from client import CallError, Client

    try:
        with Client(address, model, timeout=timeout) as client:
            wanted = [name for name in client.info().outputs if name != "last_hidden_state"]
            answer = client.infer({"text": text}, wanted or ["last_hidden_state"], truncate)
    except CallError as error:
        fail(error)
    if as_json:
        outputs = {name: array.tolist() for name, array in answer.outputs.items()}
        print(json.dumps({"model": model, "digest": answer.digest, "provider": answer.provider} | outputs))
    else:
        _show(text, answer)


def _show(texts: list[str], answer: Answer) -> None:
    name, vectors = next(iter(answer.outputs.items()))
    out.print(f"[bold]{name}[/] {list(vectors.shape)}")
    if name == "sentence_embedding":
        out.print(_vector_table(texts, answer))
    else:
        out.print(str(vectors))
    milliseconds = f"queue {answer.queue_seconds * 1e3:.1f} ms, compute {answer.compute_seconds * 1e3:.1f} ms"
    err.print(f"[dim]{answer.provider}, {answer.precision}, bundle {answer.digest[:19]}; {milliseconds}[/]")


def _vector_table(texts: list[str], answer: Answer) -> Table:
    """Each text with the beginning of its vector and, for several texts, its cosine to each of them."""
    vectors = answer["sentence_embedding"]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    several = len(texts) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("text", overflow="ellipsis", no_wrap=True, max_width=36)
    table.add_column("vector", no_wrap=True)
    for number in range(len(texts) if several else 0):
        table.add_column(f"cos {number + 1}", justify="right", no_wrap=True)
    for number, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
        start = " ".join(f"{value:+.2f}" for value in vector[:SHOWN_VALUES]) + " …"
        row = [f"{cosine:.2f}" for cosine in cosines[number]] if several else []
        table.add_row(str(number + 1), escape(text), start, *row)
    return table
