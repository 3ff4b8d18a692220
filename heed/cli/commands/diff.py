import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from heed.cli.console import check_file, err, fail, out

if TYPE_CHECKING:
    import numpy as np

    from heed.cli.differences import ComparedRequest, Comparison
    from heed.server.engine.model import Model

SHOWN = 5  # worst rows of each output
SHOWN_REFUSED = 3
LOWEST, HIGHEST = -8, 0  # powers of ten in a histogram
BARS = "▁▂▃▄▅▆▇█"
Differences = list[tuple[str, str, str]]


def diff(
    old: Annotated[Path, typer.Argument(help="Bundle folder: what is served now, say.")],
    new: Annotated[Path, typer.Argument(help="Bundle folder: what is to be served next.")],
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own texts, one a line, instead of the contracts' inputs.")
    ] = None,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[OUTPUT=]X",
            help="Exit with 1 if an error is larger than this share; labels=X: if more labels changed. Repeatable.",
        ),
    ] = None,
    output: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Compare this output only. Repeatable.")
    ] = None,
    old_precision: Annotated[str, typer.Option(help="What to compute the old one in.")] = "fp32",
    new_precision: Annotated[str, typer.Option(help="What to compute the new one in.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show how far the answers of two bundles are apart on the same inputs, before one takes the place of the other.

    The error of a vector is its largest difference, as a share of the largest value in the old answer's row, or of 1
    if that is larger. Logits are compared by the labels' names, in whichever order the two have them. Your own texts
    tell more than the contracts' inputs, which are there to hurt.

    Exit code 0: compared. 1: an error is above --fail-above. 2: the two cannot be compared.

    [dim]heed diff build/old build/new --texts queries.txt --fail-above 0.01[/]
    [dim]heed diff build/old build/new --texts queries.txt --fail-above logits=0.1 --fail-above labels=0.02[/]
    [dim]heed diff build/minilm build/minilm --new-precision int8[/]
    """
    from heed.bundle import BundleError
    from heed.cli.differences import Incompatible, compare, manifest_differences
    from heed.server.engine.host import usable_cpus
    from heed.server.errors import HeedError

    check_file("--texts", texts)
    limits = _limits(fail_above or [])
    try:
        models = _model(old, old_precision), _model(new, new_precision)
        requests = _requests(*models, texts)
        with err.status("comparing"):
            comparison = compare(*models, requests, usable_cpus(), output or ())
        above = comparison.above(limits)
    except (BundleError, HeedError, Incompatible, OSError, UnicodeDecodeError) as error:
        fail(error)
    differences = manifest_differences(*models)
    if as_json:
        content = _content(models, differences, comparison) | {"exceeded": bool(above), "above": _numbers(above)}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _show(models, differences, comparison)
        for name, measured in above.items():
            limit = limits.get(name, limits.get(""))
            out.print(f"{name}: [bold red]{measured:.1e} is more than {limit:g}[/], what --fail-above allows")
    raise typer.Exit(1 if above else 0)


def _limits(options: list[str]) -> dict[str, float]:
    """The limits by output; "" for all others."""
    limits = {}
    for option in options:
        output, _, text = option.rpartition("=")
        try:
            limits[output] = float(text)
        except ValueError:
            fail(f"--fail-above {option}: {text!r} is no number; give X for all outputs, or OUTPUT=X for one")
    return limits


def _model(folder: Path, precision: str) -> "Model":
    from heed.bundle.digests import check_digests
    from heed.server.engine.model import Model

    check_digests(folder)
    return Model(folder, "auto", precision)


def _requests(old: "Model", new: "Model", texts: Path | None) -> "list[ComparedRequest]":
    from heed.bundle.contract import read_contract
    from heed.cli.differences import Incompatible, iter_texts, requests_of_contracts, requests_of_texts

    if texts is None:
        return requests_of_contracts(old, new, [*read_contract(old.folder), *read_contract(new.folder)])
    for model in (old, new):
        if not model.manifest.takes_text:
            raise Incompatible(
                f"{model.folder} takes no texts, only {', '.join(x.name for x in model.manifest.inputs)}"
            )
    try:
        found = list(iter_texts(texts.read_text("utf-8")))
    except UnicodeDecodeError as error:
        raise Incompatible(f"{texts} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not found:
        raise Incompatible(f"{texts} holds no text")
    return requests_of_texts(found)


# For programs


def _content(models: "tuple[Model, Model]", differences: Differences, comparison: "Comparison") -> dict[str, object]:
    sides = zip(("old", "new"), models, strict=True)
    return {
        **{side: _side(model) for side, model in sides},
        "differences": [{"what": what, "old": old, "new": new} for what, old, new in differences],
        "requests": comparison.requests,
        "refused": comparison.refused,
        "left_out": comparison.left_out,
        "outputs": {output: _output_content(comparison, output) for output in comparison.rows},
        "labels": _labels_content(comparison) if comparison.labels else None,
    }


def _side(model: "Model") -> dict[str, str]:
    return {
        "bundle": model.manifest.name,
        "digest": model.digest,
        "precision": model.precision,
        "provider": model.session.provider,
    }


def _output_content(comparison: "Comparison", output: str) -> dict[str, object]:
    errors, cosines = comparison.errors(output), comparison.cosines(output)
    return {
        "vectors": len(errors),
        "error": _quantiles_content(errors),
        "cosine_distance": _quantiles_content(cosines) if cosines.size else None,
        "worst": [{"row": row.name, "error": _number(row.worst)} for row in comparison.worst(output, SHOWN)],
    }


def _quantiles_content(values: "np.ndarray") -> dict[str, float | None]:
    from heed.cli.differences import quantiles

    names = {"median": "median", "95 %": "p95", "99 %": "p99", "max": "max"}
    return {names[name]: _number(value) for name, value in quantiles(values).items()}


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _numbers(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _labels_content(comparison: "Comparison") -> dict[str, object]:
    worst = [{"row": each.name, "old": each.old, "new": each.new} for each in comparison.changed[:SHOWN]]
    counts = {"compared": comparison.labels, "changed": len(comparison.changed), "share": comparison.share_changed}
    return {**counts, "first": worst}


# For people


def _show(models: "tuple[Model, Model]", differences: Differences, comparison: "Comparison") -> None:
    for side, model in zip(("old", "new"), models, strict=True):
        out.print(f"{side}  [bold]{escape(model.manifest.name)}[/], {model.precision} [dim]{model.digest[:19]}…[/]")
    out.print()
    if differences:
        out.print(_difference_table(differences))
    else:
        out.print("they say the same of themselves")
    out.print(f"\n[bold]apart[/] on {_count(comparison.requests, 'request')} that both take")
    out.print(_distribution_table(comparison))
    for output, why in comparison.left_out.items():
        out.print(f"[yellow]not compared:[/] {output}, {escape(why)}", soft_wrap=True)
    if comparison.labels:
        _show_labels(comparison)
    for output in comparison.rows:
        _show_worst(comparison, output)
    _show_refused(comparison)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name)
    return table


def _difference_table(differences: Differences) -> Table:
    table = _table("differs", "old", "new")
    for what, old, new in differences:
        table.add_row(Text(what), Text(old), Text(new))
    return table


def _distribution_table(comparison: "Comparison") -> Table:
    """A line for each output and measure, with how many vectors there are in each power of ten."""
    from heed.cli.differences import QUANTILES, quantiles

    table = _table("output")
    table.columns[0].no_wrap = True
    table.add_column("vectors", justify="right", no_wrap=True)
    for name in QUANTILES:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"1e{LOWEST} … 1e{HIGHEST}", no_wrap=True)
    for output in comparison.rows:
        for name, values in ((output, comparison.errors(output)), ("  1 - cosine", comparison.cosines(output))):
            if values.size:
                numbers = [f"{value:.1e}" for value in quantiles(values).values()]
                table.add_row(name, str(len(values)), *numbers, histogram(values))
    return table


def histogram(values: "np.ndarray") -> str:
    """A bar for each power of ten; whatever is not empty can be seen."""
    from heed.cli.differences import count_by_decade

    counts = count_by_decade(values, LOWEST, HIGHEST)
    most = max(counts)
    return "".join(BARS[(count * (len(BARS) - 1)) // most] if count else "·" for count in counts)


def _show_labels(comparison: "Comparison") -> None:
    share = comparison.share_changed
    colour = "yellow" if comparison.changed else "green"
    out.print(f"[bold]labels[/]  [{colour}]{len(comparison.changed)} of {comparison.labels} changed ({share:.1%})[/]")
    for each in comparison.changed[:SHOWN]:
        out.print(Text(f"  {each.old} → {each.new}   {each.name}"), no_wrap=True, overflow="ellipsis")


def _show_worst(comparison: "Comparison", output: str) -> None:
    rows = [row for row in comparison.worst(output, SHOWN) if row.worst > 0]
    if not rows:
        out.print(f"\n[green]{output} is the same, bit for bit[/]")
        return
    out.print(f"\n[bold]furthest apart[/] in {output}")
    for row in rows:
        out.print(Text(f"  {row.worst:.1e}  {row.name}"), no_wrap=True, overflow="ellipsis")


def _show_refused(comparison: "Comparison") -> None:
    if not comparison.refused:
        return
    err.print(f"\n[yellow]{_count(len(comparison.refused), 'request')} left out[/], which one of the two does not take")
    for reason in comparison.refused[:SHOWN_REFUSED]:
        err.print(Text(f"  {reason}"), no_wrap=True, overflow="ellipsis")
