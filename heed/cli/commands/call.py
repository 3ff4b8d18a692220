import json
from typing import Annotated

import typer

from heed.cli.answers import TextQuery, render_answer
from heed.cli.console import err, fail, out
from heed.cli.server_options import ServerOptions, explain_error, with_server_options
from heed.client import Answer
from heed.client.answers import CLASSIFY, EMBED, RANK, TAG
from heed.client.wire import texts_and_pairs

# What to ask for, by the model's task; the rest is asked for its hidden states.
OUTPUTS = {
    "embedding": EMBED,
    "sequence_classification": CLASSIFY,
    "token_classification": [*TAG, "tokens"],
    "reranking": RANK,  # of pairs; a text alone has a score, and there is nothing to rank
}


@with_server_options
def call(
    *,
    server: ServerOptions,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    model: Annotated[str, typer.Argument(help="The model's name.")],
    text: Annotated[list[str], typer.Option("--text", "-t", help="A text; repeat it to compare several.")],
    pair: Annotated[
        list[str] | None,
        typer.Option("--pair", "-p", help="What to pair the text with; repeat it to rank several for one text."),
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait, retries included.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Every value, for programs.")] = False,
) -> None:
    """Ask a server about texts: how alike they are, what they are about, or which of them answers best.

    [dim]heed call localhost:8001 minilm -t "How do I get my money back?" -t "What is your refund policy?"[/]
    [dim]heed call localhost:8001 ranker -t "refunds?" -p "We pay you back." -p "We are open all day."[/]
    """
    from heed.client import CallError, Client

    texts, pairs = _paired(text, pair or [])
    try:
        with server.client(Client, address, model, timeout) as client:
            info = client.info()
            inputs = texts_and_pairs(texts, pairs or None)
            answer = client.infer(inputs, _outputs(info.task, bool(pairs)), truncate)
    except (CallError, ValueError) as error:
        fail(explain_error(error))
    if as_json:
        outputs = {name: array.tolist() for name, array in answer.outputs.items()}
        print(json.dumps({"model": model, "digest": answer.digest, "provider": answer.provider} | outputs))
    else:
        _show(TextQuery(info, texts, pairs), answer)


def _outputs(task: str, of_pairs: bool) -> list[str]:
    if task == "reranking" and not of_pairs:
        return CLASSIFY
    return OUTPUTS.get(task, ["last_hidden_state"])


def _paired(texts: list[str], pairs: list[str]) -> tuple[list[str], list[str]]:
    """One text goes with every pair, one pair with every text."""
    if len(texts) == 1 or (len(pairs) == 1 and len(texts) > 1):
        count = max(len(texts), len(pairs))
        return texts * (count // len(texts)), pairs * (count // len(pairs)) if pairs else []
    if pairs and len(pairs) != len(texts):
        fail(f"{len(texts)} texts came with {len(pairs)} pairs; give as many, or one of either")
    return texts, pairs


def _show(query: TextQuery, answer: Answer) -> None:
    name, values = next(iter(answer.outputs.items()))
    out.print(f"[bold]{name}[/] {list(values.shape)}")
    out.print(render_answer(query, answer))
    milliseconds = f"queue {answer.queue_seconds * 1e3:.1f} ms, compute {answer.compute_seconds * 1e3:.1f} ms"
    err.print(f"[dim]{answer.provider}, {answer.precision}, bundle {answer.digest[:19]}; {milliseconds}[/]")
