"""Figures with their spread, beside what they are meant to reach."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles

from rich.table import Table


@dataclass(frozen=True)
class Spread:
    """One figure of several rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def lower_quartile(self) -> float:
        return quantiles(self.values, n=4, method="inclusive")[0] if len(self.values) > 1 else self.values[0]

    def __str__(self) -> str:
        return f"{min(self.values):.2f} … {max(self.values):.2f}"


@dataclass(frozen=True)
class Target:
    """What a figure is meant to reach."""

    limit: float
    at_most: bool = False

    def reached(self, value: float) -> bool:
        compare: Callable[[float, float], bool] = operator.le if self.at_most else operator.ge
        return compare(value, self.limit)

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    name: str
    value: float
    spread: str = ""
    target: Target | None = None

    @property
    def mark(self) -> str:
        if self.target is None:
            return ""
        return "[green]✓[/]" if self.target.reached(self.value) else "[red]✗[/]"


def of_median(name: str, values: Iterable[float], target: Target | None = None) -> Figure:
    """The median of several rounds."""
    spread = Spread(tuple(values))
    return Figure(name, spread.median, str(spread), target)


def of_lower_quartile(name: str, values: Iterable[float], target: Target | None = None) -> Figure:
    """What three rounds in four reach."""
    spread = Spread(tuple(values))
    return Figure(name, spread.lower_quartile, f"{spread}, median {spread.median:.2f}", target)


def table(figures: Sequence[Figure]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "figure", "spread", "meant", ""):
        shown.add_column(name, justify="right" if name == "figure" else "left")
    for figure in figures:
        value = "none" if math.isnan(figure.value) else f"{figure.value:.3g}"
        shown.add_row(figure.name, value, figure.spread, str(figure.target or ""), figure.mark)
    return shown


def as_json(figures: Sequence[Figure]) -> list[dict[str, object]]:
    return [asdict(figure) for figure in figures]
