from pathlib import Path

from examples import frames, patterns, saw


def test_a_tagger_needs_both_attention_and_positions(tmp_path: Path) -> None:
    accuracies = saw.main(tmp_path)
    assert accuracies["attention and positions"] > 0.98
    assert accuracies["without positions"] < 0.8
    assert accuracies["without attention"] < 0.8
    assert (tmp_path / "saw.png").stat().st_size > 10_000


def test_frames_are_told_apart_by_their_second(tmp_path: Path) -> None:
    accuracies = frames.main(tmp_path)
    assert accuracies["chunked"] > 0.98
    assert accuracies["each frame alone"] < 0.8
    assert (tmp_path / "frames.png").stat().st_size > 10_000


def test_patterns_are_drawn(tmp_path: Path) -> None:
    patterns.draw(tmp_path / "patterns.svg", patterns.PATTERNS)
    assert (tmp_path / "patterns.svg").read_text().count("<image") == len(patterns.PATTERNS)
