"""`heed export` is stopped at any moment: nothing half-written, no leftovers, what exists stays."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from heed.bundle.digests import check_digests
from heed.cli.interrupts import stopping_at_once

REPOSITORY = Path(__file__).parents[2]


def exporting(source: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "heed", "export", str(source), str(out), *flags]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def inside(folder: Path) -> list[str]:
    """Hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a bundle, so to speak, that is to be replaced."""
    (tmp_path / "place/old").mkdir(parents=True)
    (tmp_path / "place/old/precious").write_text("mine")
    return tmp_path / "place"


UNTOUCHED = ["old", "old/precious"]
LOADED, ANSWERED, WRITTEN = "loading the weights", "computing the reference", "writing the graphs"


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGINT, LOADED), (signal.SIGTERM, ANSWERED), (signal.SIGINT, WRITTEN)],
)
def test_it_stops_in_the_middle_of_a_step(tiny: Path, place: Path, number: signal.Signals, after: str) -> None:
    process = exporting(tiny, place / "deep/er/out")
    assert process.stderr
    while after not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.05)
    assert any(".out.partial-" in name for name in inside(place))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert err.endswith("interrupted; nothing was written\n")
    assert "Traceback" not in err
    assert inside(place) == UNTOUCHED


def stopped_after(seconds: float, number: signal.Signals, source: Path, out: Path, *flags: str) -> int:
    process = exporting(source, out, *flags)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        if random.random() < 0.3:  # an impatient finger
            process.send_signal(number)
    _, err = process.communicate(timeout=100)
    if process.returncode > 0:
        assert "Traceback" not in err
    return process.returncode


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_it_stops_at_any_moment(tiny: Path, place: Path) -> None:
    started = time.monotonic()
    assert stopped_after(600, signal.SIGINT, tiny, place / "whole") == 0
    whole = time.monotonic() - started
    check_digests(place / "whole")
    random.seed(7)
    codes = []
    for attempt in range(24):
        # A third of the moments is near the end, where folders change places.
        moment = random.uniform(0.85, 1.05) * whole if attempt % 3 == 0 else random.uniform(0.02, 1.0) * whole
        number = signal.SIGTERM if attempt % 4 == 3 else signal.SIGINT
        new, fresh = attempt % 2 == 0, f"deep/er/out-{attempt}"
        target = place / fresh if new else place / "old"
        code = stopped_after(moment, number, tiny, target, *([] if new else ["--force"]))
        codes.append(code)
        if code == 0:  # it was done before the signal came, or it was too late
            check_digests(target)
            for path in target.iterdir():
                path.unlink()
            target.rmdir()
            if new:
                (place / "deep/er").rmdir()
                (place / "deep").rmdir()
            else:
                target.mkdir()
                (target / "precious").write_text("mine")
        else:
            # Negative: while Python itself started, before a line of ours.
            assert code in (128 + number, -number)
        assert [name for name in inside(place) if not name.startswith("whole")] == UNTOUCHED, (attempt, moment, code)
    assert sum(code != 0 for code in codes) > 10


# The handler alone


def test_handlers_are_what_they_were_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopping_at_once(lambda: True):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_comes_too_late_is_let_go() -> None:
    asked = []

    def too_late() -> bool:
        asked.append(1)
        return False

    with stopping_at_once(too_late):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert asked == [1, 1]


def program(body: str) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    lines = f"from heed.cli.interrupts import stopping_at_once\nimport signal\n{body}"
    return lambda: subprocess.run(
        [sys.executable, "-c", lines], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_what_catches_everything_cannot_go_on() -> None:
    """A control of the design: an exception would be swallowed here, and the work would end as if nothing were."""
    done = program(
        "with stopping_at_once(lambda: True):\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except BaseException:\n"
        "        pass\n"
        "    print('went on')\n"
    )()
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was written\n")
