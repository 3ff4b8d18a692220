"""How answers about texts look: each kind, made by hand."""

import numpy as np
import pytest
import typer
from rich.console import Console

from heed.cli.answers import TextQuery, render_answer
from heed.cli.commands.call import _paired
from heed.client import Answer, ModelInfo


def lines_of(query: TextQuery, outputs: dict[str, np.ndarray], *, colours: bool = False) -> list[str]:
    answer = Answer(outputs, "sha256:0", "CPUExecutionProvider", "fp32", 0.0, 0.0)
    console = Console(width=100, force_terminal=colours, color_system="standard" if colours else None)
    with console.capture() as capture:
        console.print(render_answer(query, answer))
    return capture.get().splitlines()


def query(task: str, texts: list[str], pairs: list[str] | None = None, labels: list[str] | None = None) -> TextQuery:
    return TextQuery(ModelInfo("m", ["1"], {}, {}, task, labels or []), texts, pairs or [])


def test_each_text_has_its_label_and_how_likely_it_is() -> None:
    outputs = {"scores": np.array([[0.25, 0.75], [0.9, 0.1]]), "labels": np.array(["bad [b]", "good"], object)}
    _, first, second = lines_of(query("sequence_classification", ["a [x]", "b"], labels=["good", "bad [b]"]), outputs)
    assert first.split("█")[0].split() == ["1", "a", "[x]", "bad", "[b]", "75.0%"]
    assert second.split("█")[0].split() == ["2", "b", "good", "90.0%"]
    assert second.count("█") > first.count("█") > 0


def test_a_score_that_is_no_share_is_shown_as_a_number() -> None:
    outputs = {"scores": np.array([[2.5, -1.0]]), "labels": np.array(["good"], object)}
    _, line = lines_of(query("sequence_classification", ["a"], labels=["good", "bad"]), outputs)
    assert line.split() == ["1", "a", "good", "+2.500"]


def ranked(*logits: float) -> dict[str, np.ndarray]:
    column = np.array(logits)[:, None]
    return {"scores": column, "logits": column}


def test_the_best_pair_comes_first_and_what_all_share_is_left_out() -> None:
    query_ = query("reranking", ["why"] * 3, ["no", "yes", "well"])
    header, *lines = lines_of(query_, ranked(-1.5, 2.25, 0.0))
    assert header.split() == ["rank", "score", "pair"]
    assert [line.split() for line in lines] == [["1", "+2.250", "yes"], ["2", "+0.000", "well"], ["3", "-1.500", "no"]]


def test_pairs_of_different_texts_are_shown_whole() -> None:
    header, first, _ = lines_of(query("reranking", ["a", "b"], ["c", "d"]), ranked(0.0, 1.0))
    assert header.split() == ["rank", "score", "text", "pair"]
    assert first.split() == ["1", "+1.000", "b", "d"]


WORDS = {
    "scores": np.full((2, 5, 3), 1 / 3),
    "labels": np.array([["O", "O", "PLACE", "PLACE", "O"], ["O", "NAME", "O", "", ""]], object),
    "tokens": np.array([["[CLS]", "in", "ber", "##lin", "[SEP]"], ["[CLS]", "Ada", "[SEP]", "", ""]], object),
    "offsets": np.array([[[0, 0], [0, 2], [3, 6], [6, 9], [0, 0]], [[0, 0], [0, 3], [0, 0], [0, 0], [0, 0]]], np.int64),
}


def test_words_stand_before_their_labels_and_special_tokens_and_padding_are_left_out() -> None:
    lines = lines_of(query("token_classification", ["in berlin", "Ada"], labels=["O", "NAME", "PLACE"]), WORDS)
    assert [line.split() for line in lines] == [["1", "in", "ber", "PLACE", "·lin", "PLACE"], ["2", "Ada", "NAME"]]


def test_words_with_labels_are_coloured_by_label_and_others_are_not() -> None:
    lines = lines_of(
        query("token_classification", ["in berlin", "Ada"], labels=["O", "NAME", "PLACE"]), WORDS, colours=True
    )
    assert "\x1b[1;35mber\x1b[0m" in lines[0]
    assert "\x1b[1;35m·lin\x1b[0m" in lines[0]
    assert "\x1b[1;36mAda\x1b[0m" in lines[1]
    assert lines[0].startswith("1  in ")


@pytest.mark.parametrize(
    ("texts", "pairs", "expected"),
    [
        (["a"], [], (["a"], [])),
        (["a", "b"], [], (["a", "b"], [])),
        (["a"], ["x"], (["a"], ["x"])),
        (["a"], ["x", "y"], (["a", "a"], ["x", "y"])),
        (["a", "b"], ["x"], (["a", "b"], ["x", "x"])),
        (["a", "b"], ["x", "y"], (["a", "b"], ["x", "y"])),
    ],
)
def test_one_text_goes_with_every_pair_and_one_pair_with_every_text(
    texts: list[str], pairs: list[str], expected: tuple[list[str], list[str]]
) -> None:
    assert _paired(texts, pairs) == expected


def test_other_numbers_of_pairs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        _paired(["a", "b"], ["x", "y", "z"])
    assert "2 texts came with 3 pairs" in capsys.readouterr().err
