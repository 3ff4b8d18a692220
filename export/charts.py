"""Errors as pictures: inline SVG, drawn without scripts. Colours are the page's (see `report.html` in `report.py`)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from heed.bundle.contract import Finding

WIDTH, GUTTER, MARGIN = 940, 250, 84  # pixels: the picture, the names on its left, the numbers on its right
ROW, TOP, BOTTOM, RADIUS = 20, 34, 34, 4.5
FEWEST_DECADES = 4  # below the budget
MOST_DECADES = 9
KINDS = 5  # of marks, see `.mark0` and on


@dataclass(frozen=True)
class Axis:
    """The axis from errors to pixels, in decades of the budget; the budget itself is at 0."""

    lowest: int  # decade
    budget: float | None  # where all have the same, to write errors and not shares

    @property
    def left(self) -> int:
        """The x coordinate of an error of 0."""
        return GUTTER + 14

    @property
    def _start(self) -> int:
        return self.left + 34

    @property
    def _decade(self) -> float:
        return (WIDTH - MARGIN - self._start) / (0.75 - self.lowest)

    def at(self, decades: float) -> float:
        return self._start + (decades - self.lowest) * self._decade

    def x_of(self, used: float) -> float:
        """The x coordinate of a share of the budget."""
        return self.left if used <= 0 else self.at(max(math.log10(used), self.lowest))

    def name(self, decade: int) -> str:
        if self.budget is not None:
            return f"{self.budget * 10.0**decade:.0e}"
        return f"{10.0 ** (decade + 2):.{max(0, -decade - 2)}f} %"


def axis_of(findings: Sequence[Finding]) -> Axis:
    used = [found.error / found.budget for found in findings if 0 < found.error < math.inf]
    lowest = math.floor(math.log10(min(used))) if used else 0
    budgets = {(found.budget, found.measure) for found in findings}
    (only, measure), *others = sorted(budgets)
    same = only if not others and measure == "share" else None
    return Axis(-min(max(-lowest, FEWEST_DECADES), MOST_DECADES), same)


def draw_rows(rows: Sequence[tuple[str, Sequence[Finding]]], kinds: Sequence[str], title: str) -> str:
    """One line for each row, one mark for each of its findings; `kinds` are the outputs in the order of their marks."""
    findings = [found for _, in_row in rows for found in in_row]
    axis = axis_of(findings)
    height = TOP + ROW * len(rows) + BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        *_background(axis, len(rows)),
        *(part for number, (name, in_row) in enumerate(rows) for part in _row(axis, number, name, in_row, kinds)),
        "</svg>",
    ]
    return "\n".join(parts)


def _background(axis: Axis, rows: int) -> Iterator[str]:
    """Stripes, the decades, and the budget with what is beyond it."""
    end, bottom = WIDTH - MARGIN, TOP + ROW * rows
    for number in range(0, rows, 2):
        yield f'<rect class="stripe" x="0" y="{TOP + ROW * number}" width="{WIDTH}" height="{ROW}"/>'
    yield f'<rect class="beyond" x="{axis.at(0):.1f}" y="{TOP}" width="{end - axis.at(0):.1f}" height="{ROW * rows}"/>'
    yield f'<line class="grid" x1="{axis.left}" y1="{TOP}" x2="{axis.left}" y2="{bottom}"/>'
    yield f'<text class="tick" x="{axis.left}" y="{bottom + 16}">0</text>'
    for decade in range(axis.lowest, 0):
        x = axis.at(decade)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{axis.name(decade)}</text>'
    x = axis.at(0)
    yield f'<line class="budget" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom + 4}"/>'
    yield f'<text class="tick budget-name" x="{x:.1f}" y="{TOP - 12}">budget</text>'
    yield f'<text class="tick budget-name" x="{x:.1f}" y="{bottom + 16}">{axis.name(0)}</text>'
    yield f'<text class="tick end" x="{WIDTH - 6}" y="{TOP - 12}">worst</text>'


def _row(axis: Axis, number: int, name: str, findings: Sequence[Finding], kinds: Sequence[str]) -> Iterator[str]:
    y = TOP + ROW * number + ROW / 2
    yield f'<text class="name" x="{GUTTER}" y="{y + 4}">{escape(name)}</text>'
    for found in findings:
        yield _mark(axis.x_of(found.error / found.budget), y, kinds.index(found.output), words(found))
    worst = max(found.error / found.budget for found in findings)
    yield f'<text class="worth" x="{WIDTH - 6}" y="{y + 4}">{percent(worst)}</text>'


def _mark(x: float, y: float, kind: int, title: str) -> str:
    return f'<g class="mark{kind % KINDS}"><title>{escape(title)}</title>{shape(kind, x, y)}</g>'


def shape(kind: int, x: float, y: float) -> str:
    """A mark that differs from the others without its colour, too."""
    r = RADIUS
    match kind % KINDS:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
        case 1:
            return f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"/>'
        case 2:
            return f'<rect x="{x - r + 0.5:.1f}" y="{y - r + 0.5:.1f}" width="{2 * r - 1}" height="{2 * r - 1}"/>'
        case 3:
            return f'<path d="M{x:.1f} {y - r:.1f}l{r} {2 * r - 1}h{-2 * r}z"/>'
        case _:
            return f'<path d="M{x:.1f} {y + r:.1f}l{r} {1 - 2 * r}h{-2 * r}z"/>'


def words(found: Finding) -> str:
    of = " (1 - cosine)" if found.measure == "cosine" else ""
    return f"{found.output} in {found.case}: {found.error:.1e}{of}, {found.budget:.0e} allowed"


def percent(used: float) -> str:
    """A share of the budget."""
    if used == 0:
        return "0 %"
    if used < 1e-4:
        return "< 0.01 %"
    return f"{100 * used:.{0 if used >= 0.1 else 1 if used >= 0.01 else 2}f} %"
