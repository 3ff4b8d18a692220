"""Pictures of attention: what stands where, and letters of every script."""

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from heed.cli.drawing import CannotDraw, attention_figure, check_can_draw, draw_attention

ROOT = Path(__file__).parent.parent.parent


def some_weights(layers: int, heads: int, tokens: int) -> np.ndarray:
    """Random rows that sum to 1: `[layers, heads, tokens, tokens]`."""
    return np.random.default_rng(0).dirichlet(np.ones(tokens), (layers, heads, tokens)).astype(np.float32)


def drawn(layers: Sequence[int], heads: Sequence[int], labels: Sequence[str]) -> Figure:
    weights = some_weights(len(layers), len(heads), len(labels))
    return attention_figure(weights, labels, layers, heads, "a title")


def panels(figure: Figure) -> list[Axes]:
    """All but the colour bar."""
    return [axes for axes in figure.axes if axes.images]


def words(axes: Axes) -> tuple[list[str], list[str]]:
    """What is written at the rows and at the columns."""
    return [tick.get_text() for tick in axes.get_yticklabels()], [tick.get_text() for tick in axes.get_xticklabels()]


def places(figure: Figure) -> list[tuple[int, int]]:
    """Row and column of every panel, counted by where it stands."""
    corners = [(round(-axes.get_position().y1, 3), round(axes.get_position().x0, 3)) for axes in panels(figure)]
    tops, lefts = sorted({top for top, _ in corners}), sorted({left for _, left in corners})
    return [(tops.index(top), lefts.index(left)) for top, left in corners]


def lay_out(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]


def test_each_head_of_a_layer_is_drawn_with_queries_as_rows() -> None:
    weights = some_weights(1, 5, 3)
    figure = attention_figure(weights, ["a", "b", "c"], [6], [1, 2, 3, 4, 5], "a title")
    assert [axes.get_title() for axes in panels(figure)] == ["head 1", "head 2", "head 3", "head 4", "head 5"]
    for axes, expected in zip(panels(figure), weights[0], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        assert axes.images[0].origin == "upper"
    assert places(figure) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    first = panels(figure)[0]
    assert (first.get_ylabel(), first.get_xlabel()) == ("query", "")
    assert panels(figure)[3].get_xlabel() == "key"


def test_rows_are_labelled_on_the_left_and_columns_below_the_last_head() -> None:
    labelled = [tuple(map(bool, words(axes))) for axes in panels(drawn([1], [1, 2, 3, 4, 5], ["a", "b", "c"]))]
    assert labelled == [(True, False), (False, False), (False, True), (True, True), (False, True)]


def test_layers_are_rows_and_heads_are_columns() -> None:
    figure = drawn([1, 2], [1, 2, 3], ["a", "b"])
    assert places(figure) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert panels(figure)[5].get_title() == "layer 2, head 3"


def test_one_head_of_several_layers_is_wrapped() -> None:
    figure = drawn([1, 2, 3, 4, 5, 6], [7], ["a", "b"])
    assert max(places(figure)) == (1, 2)
    assert panels(figure)[5].get_title() == "layer 6, head 7"


def test_all_heads_share_one_scale_from_0_to_the_greatest_weight() -> None:
    weights = some_weights(1, 2, 3) * 0.5
    weights[0, 1, 2, 0] = 0.75
    figure = attention_figure(weights, ["a", "b", "c"], [1], [1, 2], "a title")
    assert {axes.images[0].get_clim() for axes in panels(figure)} == {(0.0, 0.75)}
    (bar,) = (axes for axes in figure.axes if not axes.images)
    assert bar.get_ylim() == (0.0, 0.75)
    assert bar.get_ylabel() == "attention weight"


def test_the_title_is_written() -> None:
    assert "a title" in [text.get_text() for text in drawn([1], [1], ["a"]).texts]


def test_a_single_head_of_a_few_tokens_has_its_numbers() -> None:
    figure = attention_figure(np.array([[[[0.25, 0.75], [1, 0]]]]), ["a", "b"], [1], [1], "a title")
    numbers = {text.get_position(): text.get_text() for text in panels(figure)[0].texts}
    assert numbers == {(0, 0): "0.25", (1, 0): "0.75", (0, 1): "1.00", (1, 1): "0.00"}


@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (1, 3), (1, 40), (1, 400), (12, 40)])
def test_labels_do_not_overlap(heads: int, tokens: int) -> None:
    labels = (["[CLS]", "fox", "·s", "早上好", "مرحبا", "paragraph", "[UNK] 早", "Привет"] * 50)[:tokens]
    figure = drawn([1], range(1, heads + 1), labels)
    lay_out(figure)
    corner = panels(figure)[8 if heads == 12 else 0]
    boxes = [tick.get_window_extent() for tick in corner.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
    boxes = [tick.get_window_extent() for tick in corner.get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert len(corner.get_yticklabels()) == tokens or any(" is labelled" in text.get_text() for text in figure.texts)


@pytest.mark.long
def test_twelve_layers_of_twelve_heads_are_a_picture_of_a_sensible_size(tmp_path: Path) -> None:
    weights = some_weights(12, 12, 6)
    draw_attention(tmp_path / "a.png", weights, list("abcdef"), range(1, 13), range(1, 13), "a title")
    height, width, _ = imread(tmp_path / "a.png").shape
    assert 3000 < width < 7000
    assert 3000 < height < 7000


# Two letters of each script: drawn as boxes they would look the same.
SCRIPTS = {
    "latin": "ab",
    "vietnamese": "ếệ",
    "cyrillic": "Жд",
    "greek": "αγ",
    "chinese": "早好",
    "simplified": "们这",
    "traditional": "們這",
    "japanese": "こカ",
    "korean": "안녕",
    "arabic": "مع",
    "persian": "گچ",
    "hebrew": "של",
    "devanagari": "नम",
    "bengali": "বল",
    "tamil": "தம",
    "thai": "สว",
    "khmer": "ខម",
    "myanmar": "မန",
    "georgian": "გმ",
    "amharic": "አማ",
    "emoji": "🚀🙂",
    "marks": "␣▁",
}


@pytest.mark.parametrize("letters", [pytest.param(letters, id=name) for name, letters in SCRIPTS.items()])
def test_letters_of_a_script_are_drawn_and_not_boxes(tmp_path: Path, letters: str) -> None:
    pictures: list[np.ndarray] = []
    for letter in letters:
        assert draw_attention(tmp_path / "a.png", np.ones((1, 1, 1, 1)), [letter], [1], [1], letter) == []
        pictures.append(imread(tmp_path / "a.png"))
    assert not np.array_equal(pictures[0], pictures[1])


def width_of(label: str) -> float:
    figure = drawn([1], [1], [label])
    lay_out(figure)
    return float(panels(figure)[0].get_yticklabels()[0].get_window_extent().width)


def test_letters_join_where_their_script_joins_them() -> None:
    """The isolated forms of ععع are wider than the word."""
    assert width_of("ععع") < 0.9 * width_of("\u200c".join("ععع"))


def test_an_emoji_of_several_code_points_is_one_picture() -> None:
    assert width_of("🧑‍💻") < 1.5 * width_of("💻")


def test_what_no_font_has_is_named_and_drawn_as_its_code_point(tmp_path: Path) -> None:
    labels = ["a", "𒀀", "བ", "\U000f0000"]
    missing = draw_attention(tmp_path / "a.png", some_weights(1, 1, 4), labels, [1], [1], "𒀁")
    assert missing == ["Cuneiform", "Tibetan", "Unknown"]
    assert words(panels(drawn([1], [1], labels))[0])[0] == ["a", "⟨U+12000⟩", "⟨U+0F56⟩", "⟨U+F0000⟩"]


def test_dollars_and_backslashes_are_letters(tmp_path: Path) -> None:
    labels = ["$x^2$", r"$\frac$", "_", "<s>"]
    assert draw_attention(tmp_path / "a.png", some_weights(1, 1, 4), labels, [1], [1], r"$\nothing$") == []


def test_a_long_token_is_shortened() -> None:
    assert words(panels(drawn([1], [1], ["a" * 100]))[0])[0] == ["a" * 17 + "…"]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_name_of_the_file_says_which_kind(tmp_path: Path, kind: str) -> None:
    draw_attention(tmp_path / f"a.{kind}", some_weights(1, 2, 3), ["早", "b", "🚀"], [1], [1, 2], "a title")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert (tmp_path / f"a.{kind}").read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a", ["a ends in no kind of picture", "png", "svg"]),
        ("a.txt", ["a.txt", "png"]),
        ("no/a.png", ["not a folder"]),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_work(tmp_path: Path, name: str, parts: list[str]) -> None:
    with pytest.raises(CannotDraw) as caught:
        check_can_draw(tmp_path / name)
    for part in parts:
        assert part in str(caught.value)


def test_without_matplotlib_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heed.cli.drawing.find_spec", lambda _: None)
    with pytest.raises(CannotDraw, match=r"pip install 'heed-serve\[plots\]'"):
        check_can_draw(tmp_path / "a.png")


def test_fonts_of_the_machine_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.font_manager import fontManager

    here = [entry for entry in fontManager.ttflist if str(entry.fname).startswith(sys.prefix)]
    monkeypatch.setattr(fontManager, "ttflist", here)
    draw_attention(tmp_path / "a.png", some_weights(1, 1, 2), ["早上好", "مرحبا"], [1], [1], "a title")


def test_it_is_quiet_where_matplotlib_can_keep_no_cache(tmp_path: Path) -> None:
    program = "from pathlib import Path; import numpy as np; from heed.cli.drawing import draw_attention\n"
    program += f"draw_attention(Path({str(tmp_path / 'a.png')!r}), np.ones((1, 1, 1, 1)), ['a'], [1], [1], 'a title')"
    env = os.environ | {"MPLCONFIGDIR": "/dev/null/none"}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert (done.returncode, done.stderr) == (0, "")
