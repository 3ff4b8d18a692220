"""What a command shows of long work, in a log."""

import pytest

from heed.cli import console
from heed.cli.console import stages


def test_a_log_hears_now_and_then_how_far_a_step_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console, "perf_counter", lambda: now[0])
    with stages("looking") as shown:
        shown.step("counting")
        for second in range(1, 61):
            now[0] = second
            shown.progress(second / 60)
    lines = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in lines] == [
        "✓ looking 0.0 s",
        "counting: 27% after 16 s",
        "counting: 53% after 32 s",
        "counting: 80% after 48 s",
        "✓ counting 60.0 s",
    ]
