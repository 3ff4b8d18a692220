"""The rows of the report."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field

from rich.table import Table


class Skipped(Exception):
    """Why something cannot be done here, or is not what this model is."""


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    part: str
    what: str
    found: str
    holds: bool | None = None  # None: told, and nothing hangs on it
    figures: dict[str, float] = field(default_factory=dict)  # the same as numbers


def attempted(part: str, what: str, rows: Callable[[], Iterable[Row]], must: bool = False) -> Iterator[Row]:
    """The rows, up to the first error, which is told in a row of its own: one part that fails takes no other along.

    Args:
        must: whether the report does not hold then.
    """
    try:
        yield from rows()
    except Skipped as why:
        yield Row(part, what, f"skipped: {why}")
    except Exception as error:  # whatever it is, the rest is worth knowing
        lines = str(error).strip().splitlines() or [""]
        yield Row(part, what, f"failed: {type(error).__name__}: {lines[0][:200]}", False if must else None)


def holds(rows: Iterable[Row]) -> bool:
    """Whether nothing fails that must hold, and there is something that must."""
    decided = [row.holds for row in rows if row.holds is not None]
    return bool(decided) and all(decided)


def table(rows: Iterable[Row]) -> Table:
    marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: ""}
    shown = Table(box=None, pad_edge=False)
    for column in ("", "part", "what", "found"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(marks[row.holds], row.part, row.what, row.found)
    return shown


def summary(rows: Iterable[Row]) -> Table:
    """Sequences per second: a line for each way, a column for each model and what it was asked."""
    speeds: dict[str, dict[str, float]] = {}
    for row in rows:
        if "FLOP/s" in row.figures:
            speeds.setdefault(row.what, {})[row.part] = row.figures["sequences/s"]
    parts = list(dict.fromkeys(part for each in speeds.values() for part in each))
    shown = Table("sequences/s" if parts else "", box=None, pad_edge=False)
    for part in parts:
        shown.add_column(part, justify="right")
    for way, each in speeds.items():
        shown.add_row(way, *(f"{each[part]:,.0f}" if part in each else "" for part in parts))
    return shown


def as_json(rows: Iterable[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]
