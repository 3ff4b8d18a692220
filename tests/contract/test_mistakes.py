"""An exporter's mistakes never become READY, nor do damaged files: `scripts/bench gate` shows all in a table."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gate import OTHERS, Load, Off, Verdict, off, precisions, protected_files, refused_by, settings, summary
from bench.subjects import Right, make_right
from heed.bundle.digests import check_digests
from heed.model import Encoder, load_checkpoint
from heed.server.errors import StartError
from heed.server.repository.verification import load_verified
from tests.mutations import mistakes
from tests.mutations.corruptions import corruptions, is_sprung
from tests.mutations.mistakes import INT8_MISTAKES, MISTAKES, Mistake

NAMES_THE_PLACE = (
    r"(last_hidden_state|sentence_embedding) in case \w+ (is off by|has no usable answer).* 1e-05 is allowed"
)
# The others are exported again, or need models that take long to export.
QUICK_GRAPHS = (mistakes.tanh_gelu, mistakes.padding_leaks, mistakes.mean_over_padding)


def is_quick(mistake: Mistake) -> bool:
    if mistake.part == "graphs":
        return mistake.change in QUICK_GRAPHS
    return mistake.subject in ("sentences", "tagger")


EACH_MISTAKE = [pytest.param(each, id=each.name, marks=() if is_quick(each) else pytest.mark.long) for each in MISTAKES]


@pytest.mark.parametrize("mistake", EACH_MISTAKE)
def test_a_mistake_is_refused_by_its_numbers(right: Callable[[str], Right], tmp_path: Path, mistake: Mistake) -> None:
    wrong = mistake.make(right(mistake.subject), tmp_path / "wrong")
    check_digests(wrong)  # they are right: what refuses is the numbers
    assert off(wrong).fair, "a mistake too small to prove anything"
    assert refused_by(wrong) == "numbers"


@pytest.mark.long
def test_int8_is_made_of_the_same_mistake(tmp_path: Path) -> None:
    right = make_right("sentences", tmp_path, OTHERS)
    assert precisions(right.bundle) == ["fp32", "int8"]
    for number, mistake in enumerate([Mistake("sentences", "weights", mistakes.two_layers_swapped), *INT8_MISTAKES]):
        wrong = mistake.make(right, tmp_path / str(number))
        assert refused_by(wrong) == "numbers"
        assert (refused_by(wrong, "int8") == "numbers") == (number == 0)  # what is right in int8 is wrong in float32


def test_a_refusal_names_the_place(right: Callable[[str], Right], tmp_path: Path) -> None:
    mistake = Mistake("sentences", "weights", mistakes.positions_off_by_one)
    wrong = mistake.make(right("sentences"), tmp_path / "wrong")
    with pytest.raises(StartError, match=NAMES_THE_PLACE):
        load_verified(wrong, settings(wrong))


def no_change(encoder: Encoder) -> None:
    pass


def last_bits(encoder: Encoder) -> None:
    """A change that float32 can hold, and not much more."""
    for parameter in encoder.parameters():
        parameter.mul_(1 + 2**-23)


@pytest.mark.parametrize(
    "control",
    [Mistake("sentences", "graphs", no_change), Mistake("sentences", "weights", last_bits)],
    ids=("nothing changed", "last bits"),
)
def test_what_is_no_mistake_becomes_ready(right: Callable[[str], Right], tmp_path: Path, control: Mistake) -> None:
    """A control: it is the mistakes that are refused, not the way they are made."""
    made = control.make(right("sentences"), tmp_path / "right")
    assert refused_by(made) is None
    assert off(made).budgets < 1


def test_a_mistake_that_finds_nothing_to_change_is_an_error(right: Callable[[str], Right], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no Rotary"):
        Mistake("sentences", "weights", mistakes.rotary_base_of_another_layer).make(right("sentences"), tmp_path / "x")
    with pytest.raises(AssertionError):
        Mistake("sentences", "weights", no_change).make(right("sentences"), tmp_path / "y")


@pytest.fixture(scope="session")
def right_minilm(minilm: Path, minilm_bundle: Path) -> Right:
    return Right(load_checkpoint(minilm), minilm_bundle)


@pytest.mark.parametrize(
    "mistake",
    [
        *(each for each in MISTAKES if each.part == "words"),
        pytest.param(Mistake("minilm", "graphs", mistakes.tanh_gelu), marks=pytest.mark.long),
        pytest.param(Mistake("minilm", "graphs", mistakes.norm_epsilon_of_torch), marks=pytest.mark.long),
        pytest.param(Mistake("minilm", "weights", mistakes.positions_off_by_one), marks=pytest.mark.long),
        pytest.param(Mistake("minilm", "weights", mistakes.two_layers_swapped), marks=pytest.mark.long),
        pytest.param(
            Mistake("minilm", "weights", mistakes.value_weight_scaled_by_1001_thousandths), marks=pytest.mark.long
        ),
        pytest.param(Mistake("minilm", "weights", mistakes.weights_rounded_to_float16), marks=pytest.mark.long),
    ],
    ids=lambda mistake: mistake.name,
)
def test_a_mistake_of_minilm_is_refused_by_its_numbers(right_minilm: Right, tmp_path: Path, mistake: Mistake) -> None:
    assert refused_by(mistake.make(right_minilm, tmp_path / "wrong")) == "numbers"


def test_damaged_files_are_refused_before_the_numbers(right: Callable[[str], Right], tmp_path: Path) -> None:
    bundle = right("sentences").bundle
    for number, corruption in enumerate(corruptions(protected_files(bundle))):
        folder = shutil.copytree(bundle, tmp_path / str(number) / "wrong")
        corruption.make(folder)
        assert refused_by(folder) in ("digests", corruption.by), corruption.name
        assert not is_sprung(folder), corruption.name
        shutil.rmtree(folder)


REFUSED = Verdict("a", "sentences", "weights", "numbers", frozenset({"numbers"}), {"fp32": Off(20.0)})
LOADED = Load("sentences", "fp32", "as served", 1, 0.1)


@pytest.mark.parametrize(
    ("verdict", "load", "started", "holds"),
    [
        ({}, 0.1, True, True),
        ({"layer": None}, 0.1, True, False),
        ({"layer": "parts"}, 0.1, True, False),
        ({"off": {"fp32": Off(9.9)}}, 0.1, True, False),
        ({"off": {"fp32": Off(0.0, unusable=True)}}, 0.1, True, True),
        ({"served": False}, 0.1, True, False),
        ({"sprung": True}, 0.1, True, False),
        ({"ready": ("int8",)}, 0.1, True, True),
        ({}, float("inf"), True, False),
        ({}, 0.1, False, False),
    ],
)
def test_the_table_holds_only_if_everything_does(
    verdict: dict[str, Any], load: float, started: bool, holds: bool
) -> None:
    found, lines = summary([replace(REFUSED, **verdict)], [replace(LOADED, budgets=load)], started)
    assert found is holds
    assert re.match(r"1 wrong bundles .*: [01] became READY", lines[0])
