"""Attention weights as a picture: small multiples of query by key, one for each head, in one scale of colours.

matplotlib and the fonts come with the extra `plots`, and are imported when something is drawn.

K layers chosen, N heads chosen, L tokens: first as queries, then as keys.
"""

import logging
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heed.extras import advice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

COLOURS = "Blues"
INK, FAINT = "#222222", "#767676"
CELL, DENSE_CELL, NUMBERED_CELL = 0.17, 0.095, 0.38  # inches for each token: few, many, and with numbers written
NUMBERED = 16  # as many tokens as have their numbers written, in a single head
LABELLED = 0.09  # inches that a label needs
SMALLEST, COMFORTABLE, WIDEST = 1.1, 2.4, 26.0  # inches: a head, a head of many tokens, and all side by side
GAP = 0.14  # inches between columns
LONGEST_LABEL = 18  # characters

# In order of preference. Kurinto's own kana imitate a brush, so its variants for CJK come before it.
FONTS = (
    ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSans.ttf"),
    ("manimgx_fonts", "", "Noto*[[]wght[]].ttf"),
    *(
        ("weblate_fonts", "static/weblate_fonts/kurinto/ttf", f"KurintoSans{language}-Rg.ttf")
        for language in ("SC", "JP", "KR", "TC", "")
    ),
)


class CannotDraw(RuntimeError):
    """A package that draws is missing, or the picture cannot be written."""


@dataclass(frozen=True)
class Panel:
    """One head in the grid."""

    title: str
    row: int
    column: int
    weights_LL: np.ndarray
    left: bool  # begins a row
    bottom: bool  # ends a column


@dataclass(frozen=True)
class PictureLayout:
    """Sizes in inches."""

    rows: int
    columns: int
    side: float  # of a head
    tokens: int

    @property
    def cell(self) -> float:
        return self.side / self.tokens

    @property
    def step(self) -> int:
        """One token in so many has room for its label."""
        return math.ceil(LABELLED / self.cell - 1e-9)

    @property
    def font_size(self) -> float:
        return min(9.0, max(4.5, self.cell * self.step * 72 * 0.7))

    @property
    def name_size(self) -> float:
        """Of what is written beside the heads."""
        return min(12.0, max(8.0, 3 * self.side)) if self.rows * self.columns > 1 else 9.0

    @property
    def gap(self) -> float:
        """Between rows, where the names of heads are."""
        return 0.2 + 2 * self.name_size / 72

    @property
    def title_size(self) -> float:
        return min(20.0, max(11.0, 1.1 * self.width))

    @property
    def width(self) -> float:
        return self.columns * self.side + (self.columns - 1) * GAP

    @property
    def height(self) -> float:
        return self.rows * self.side + (self.rows - 1) * self.gap


def check_can_draw(path: Path) -> None:
    """Checks that a picture can be written, before the work for it is done.

    Raises:
        CannotDraw: matplotlib is missing, there is no such folder, or no such kind of picture.
    """
    if find_spec("matplotlib") is None:
        raise CannotDraw(advice(ModuleNotFoundError(name="matplotlib")))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports its caches
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise CannotDraw(f"{path} ends in no kind of picture that can be written: {', '.join(kinds)}")
    if not path.parent.is_dir():
        raise CannotDraw(f"{path.parent} is not a folder; the picture would be written there")


def draw_attention(
    path: Path, weights_KNLL: np.ndarray, labels: Sequence[str], layers: Sequence[int], heads: Sequence[int], title: str
) -> list[str]:
    """Draws heads of layers into a file whose name says which kind of picture it is.

    Several layers with several heads make a row for each layer; otherwise the heads are wrapped.

    Args:
        weights_KNLL: how much each query attends to each key.
        labels: for each token what to write at its row and its column.
        layers, heads: what to call them, from 1 usually.

    Returns:
        The scripts of which no font has all letters; those are drawn as their code points.

    Raises:
        CannotDraw: see `check_can_draw`.
        OSError: the file cannot be written.
    """
    check_can_draw(path)
    figure = attention_figure(weights_KNLL, labels, layers, heads, title)
    figure.savefig(path, dpi=_dpi(figure), bbox_inches="tight", pad_inches=0.15)
    return sorted({_script(letter) for text in (*labels, title) for letter in _missing(text)})


def attention_figure(
    weights_KNLL: np.ndarray, labels: Sequence[str], layers: Sequence[int], heads: Sequence[int], title: str
) -> "Figure":
    """The figure that `draw_attention` saves. Its texts are outside of its bounds: save it with a tight box."""
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    panels = list(_panels(weights_KNLL, layers, heads))
    layout = _layout(panels, len(labels))
    scale = Normalize(0, float(weights_KNLL.max()) or 1.0)
    figure = Figure((layout.width, layout.height))
    for panel in panels:
        _draw_panel(figure, panel, layout, labels, scale)
    _draw_scale(figure, layout, scale)
    _draw_title(figure, layout, title)
    return figure


def _panels(weights_KNLL: np.ndarray, layers: Sequence[int], heads: Sequence[int]) -> Iterator[Panel]:
    both = len(layers) > 1 and len(heads) > 1
    count = len(layers) * len(heads)
    columns = len(heads) if both else math.ceil(math.sqrt(count))
    for number, (layer, head) in enumerate((k, n) for k in range(len(layers)) for n in range(len(heads))):
        row, column = divmod(number, columns)
        name = f"head {heads[head]}" if len(layers) == 1 else f"layer {layers[layer]}, head {heads[head]}"
        weights_LL = weights_KNLL[layer, head]
        yield Panel(name, row, column, weights_LL, left=column == 0, bottom=number + columns >= count)


def _layout(panels: Sequence[Panel], tokens: int) -> PictureLayout:
    rows = 1 + max(panel.row for panel in panels)
    columns = 1 + max(panel.column for panel in panels)
    if len(panels) == 1:
        side = tokens * (NUMBERED_CELL if tokens <= NUMBERED else CELL)
    else:
        side = min(tokens * CELL, max(COMFORTABLE, tokens * DENSE_CELL))
    return PictureLayout(rows, columns, min(max(side, SMALLEST), WIDEST / max(rows, columns)), tokens)


def _dpi(figure: "Figure") -> float:
    """The resolution, so that no side has more than 6000 pixels."""
    return min(250.0, 6000 / float(max(figure.get_size_inches())))


def _draw_panel(
    figure: "Figure", panel: Panel, layout: PictureLayout, labels: Sequence[str], scale: "Normalize"
) -> None:
    left = panel.column * (layout.side + GAP) / layout.width
    top = 1 - panel.row * (layout.side + layout.gap) / layout.height
    size = (layout.side / layout.width, layout.side / layout.height)
    axes = figure.add_axes((left, top - size[1], *size))
    axes.imshow(panel.weights_LL, cmap=COLOURS, norm=scale, aspect="auto", interpolation="nearest")
    if layout.rows * layout.columns > 1:
        axes.set_title(panel.title, fontsize=layout.name_size, color=INK, pad=3)
    elif layout.tokens <= NUMBERED:
        _write_numbers(axes, panel.weights_LL, scale)
    _draw_lines(axes, layout)
    _label_axes(axes, panel, layout, labels)


def _draw_lines(axes: "Axes", layout: PictureLayout) -> None:
    axes.spines[:].set(color="#bbbbbb", linewidth=0.5)
    axes.tick_params(which="both", length=0, pad=2)
    if layout.cell >= 0.08:
        between = np.arange(1, layout.tokens) - 0.5
        axes.set_xticks(between, minor=True)
        axes.set_yticks(between, minor=True)
        axes.grid(which="minor", color="white", linewidth=min(0.8, layout.cell * 3))


def _label_axes(axes: "Axes", panel: Panel, layout: PictureLayout, labels: Sequence[str]) -> None:
    labelled = range(0, layout.tokens, layout.step)
    shown = [_label(labels[token]) for token in labelled]
    size = layout.font_size
    upright = max(map(_ems, shown)) * size / 72 < layout.cell * layout.step
    style: dict[str, Any] = {"fontsize": size, "color": INK, "parse_math": False}
    axes.set_xticks([])
    axes.set_yticks([])
    if panel.bottom:
        turned: dict[str, Any] = (
            {} if upright else {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
        )
        axes.set_xticks(labelled, shown, **style, **turned)
        axes.set_xlabel("key", fontsize=layout.name_size, color=FAINT)
    if panel.left:
        axes.set_yticks(labelled, shown, va="center", **style)
        axes.set_ylabel("query", fontsize=layout.name_size, color=FAINT)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_fontfamily(_families(tick.get_text()))


def _write_numbers(axes: "Axes", weights_LL: np.ndarray, scale: "Normalize") -> None:
    for (query, key), weight in np.ndenumerate(weights_LL):
        colour = "white" if scale(weight) > 0.55 else INK
        axes.text(key, query, f"{weight:.2f}", ha="center", va="center", fontsize=7, color=colour)


def _draw_scale(figure: "Figure", layout: PictureLayout, scale: "Normalize") -> None:
    from matplotlib.cm import ScalarMappable

    height = min(layout.height, max(SMALLEST, 0.6 * layout.height, 1.0), 4.0) / layout.height
    axes = figure.add_axes((1 + 0.16 / layout.width, 1 - height, 0.1 / layout.width, height))
    bar: Any = figure.colorbar(ScalarMappable(scale, COLOURS), cax=axes)
    bar.outline.set(color="#bbbbbb", linewidth=0.5)
    bar.set_label("attention weight", fontsize=layout.name_size, color=FAINT)
    axes.tick_params(labelsize=0.88 * layout.name_size, labelcolor=INK, color="#bbbbbb", length=2)


def _draw_title(figure: "Figure", layout: PictureLayout, title: str) -> None:
    """Title and explanation, above the names of the heads."""
    title = _label(title, longest=200)
    notes = "each row: how much one token (query) attends to every token (key)"
    if layout.step > 1:
        notes += f"; 1 token in {layout.step} is labelled"
    several = layout.rows * layout.columns > 1
    above = 0.16 + several * (layout.name_size / 72 + 0.08)
    style: dict[str, Any] = {"ha": "left", "va": "baseline", "parse_math": False, "fontfamily": _families(title)}
    size = layout.title_size
    figure.text(0, 1 + above / layout.height, notes, fontsize=0.68 * size, color=FAINT, **style)
    figure.text(0, 1 + (above + size / 72) / layout.height, title, fontsize=size, color=INK, **style)


def _label(text: str, longest: int = LONGEST_LABEL) -> str:
    """A text as it can be drawn: with code points for letters that no font has, and shortened."""
    lacking = set(_missing(text))
    drawn = "".join(f"⟨U+{ord(letter):04X}⟩" if letter in lacking else letter for letter in text)
    return drawn if len(drawn) <= longest else drawn[: longest - 1] + "…"


def _ems(text: str) -> float:
    """About how wide a text is, in units of its size."""
    return sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.62 for letter in text)


@cache
def _fonts() -> dict[str, frozenset[int]]:
    """The code points of each font, in the order in which fonts are tried.

    Each is a family under a name of its own: the names in the files are shared by several of them.
    """
    from matplotlib.font_manager import FontEntry, fontManager
    from matplotlib.ft2font import FT2Font

    found = {}
    for package, folder, pattern in FONTS:
        spec = find_spec(package)
        for location in spec.submodule_search_locations or [] if spec else []:
            for file in sorted((Path(location) / folder).glob(pattern)):
                name = f"heed {file.stem}"
                fontManager.ttflist.append(FontEntry(fname=str(file), name=name, weight=400))
                found[name] = frozenset(FT2Font(file).get_charmap())
    return found


def _families(text: str) -> list[str]:
    """All families, and first the one that has the whole of a text: sequences are shaped within one font only."""
    fonts = _fonts()
    whole = next((name for name, points in fonts.items() if points.issuperset(map(ord, text))), None)
    return [name for name in fonts if name == whole] + [name for name in fonts if name != whole]


def _missing(text: str) -> list[str]:
    """The letters that no font has, without those that are invisible, such as joiners."""
    known = frozenset[int]().union(*_fonts().values())
    return [letter for letter in text if ord(letter) not in known and unicodedata.category(letter) != "Cf"]


def _script(letter: str) -> str:
    """The name of a letter's script, with which the letter's Unicode name begins."""
    first = unicodedata.name(letter, "unknown characters").split(" ")[0]
    return "symbols" if unicodedata.category(letter).startswith("S") else first.capitalize()
