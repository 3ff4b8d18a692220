"""First whether a peer's answers are right, then how fast it is: wrong answers get no figures.

Letters: N requests, D width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import numpy as np

from bench.figures import Spread
from bench.peers.catalog import Peer
from bench.peers.install import Failure, install
from bench.peers.running import Place, Round, Running, started

BUDGET = 1e-5  # for vectors of length 1 in float32
WARM_UP_SECONDS = 2.0
ATTEMPTS = 3  # at a round


@dataclass
class Outcome:
    """What came of one peer: figures, or the reason why there are none."""

    peer: Peer
    python: Path = Path()
    setting: str = ""  # the one that is kept
    error: float = nan  # of its answers, at most
    reason: str = ""
    log: Path | None = None
    tried: dict[str, float | str] = field(default_factory=dict)  # answers per second, or a reason, for each setting
    rounds: list[Round] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # rounds that came to nothing and were repeated

    def fail(self, failure: Failure) -> None:
        self.reason, self.log = failure.reason, failure.log
        self.rounds.clear()


def checked(running: Running, reference_ND: np.ndarray, log: Path) -> float:
    """The largest difference from the reference.

    Raises:
        Failure: it is more than the budget.
    """
    answers = running.answers(len(reference_ND))
    if answers.shape[1:] != reference_ND.shape[1:]:
        raise Failure(f"answers have the shape {answers.shape[1:]}, not {reference_ND.shape[1:]}", log)
    error = float(np.abs(answers.reshape(-1, *reference_ND.shape) - reference_ND).max())
    if not error <= BUDGET:  # NaN is no answer either
        raise Failure(f"answers are off by {error:.1e}, {BUDGET:.0e} allowed", log)
    return error


def choose(outcome: Outcome, place: Place, reference_ND: np.ndarray, seconds: float) -> None:
    """Keeps the peer's fastest setting of those whose answers are right."""
    best, errors = -1.0, []
    for setting in outcome.peer.settings:
        try:
            with started(outcome.peer, outcome.python, setting, place) as running:
                error = checked(running, reference_ND, place.log(outcome.peer.name))
                running.round(WARM_UP_SECONDS)
                rate = running.round(seconds).rate
        except Failure as failure:
            kept = failure.log.replace(failure.log.with_suffix(f".{len(outcome.tried)}.log"))
            outcome.tried[setting] = failure.reason
            errors.append(Failure(failure.reason, kept))
            continue
        outcome.tried[setting] = rate
        if rate > best:
            best, outcome.setting, outcome.error = rate, setting, error
    if best < 0:
        outcome.fail(errors[-1])


def measure(outcome: Outcome, place: Place, seconds: float) -> None:
    """One round of a peer that has a setting.

    It is started for the round and stopped after it: a server that idles is not free (heed repeats cases of its
    contract), and would share the machine's caches. A new process each time also shows what a restart changes. A round
    with calls that got no answer is repeated, and told beside the figures.
    """
    for _ in range(ATTEMPTS):
        try:
            with started(outcome.peer, outcome.python, outcome.setting, place) as running:
                running.round(WARM_UP_SECONDS)
                outcome.rounds.append(running.round(seconds))
        except Failure as failure:
            outcome.broken.append(failure.reason)
            last = failure
        else:
            return
    outcome.fail(last)


def compare(
    peers: Sequence[Peer],
    place: Place,
    reference_ND: np.ndarray,
    rounds: int,
    seconds: float,
    done: Callable[[str], None] = lambda what: None,
) -> list[Outcome]:
    """All peers, in alternating rounds. `done` is told what is next."""
    outcomes = [Outcome(peer) for peer in peers]
    for outcome in outcomes:
        done(f"install {outcome.peer.name}")
        name = outcome.peer.name
        try:
            outcome.python = install(outcome.peer, place.folder / "venvs" / name, place.log(f"pip-{name}"))
        except Failure as failure:
            outcome.fail(failure)
    for outcome in sound(outcomes):
        done(f"{outcome.peer.name}: answers, and the fastest setting")
        choose(outcome, place, reference_ND, seconds)
    for number in range(rounds):
        for outcome in turned(sound(outcomes), number):
            done(f"round {number + 1}: {outcome.peer.name}")
            measure(outcome, place, seconds)
    return outcomes


def sound(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those of whom figures can still be had."""
    return [outcome for outcome in outcomes if not outcome.reason]


def turned(outcomes: list[Outcome], number: int) -> list[Outcome]:
    """Another one begins each round."""
    start = number % max(1, len(outcomes))
    return outcomes[start:] + outcomes[:start]


def ratio(one: Outcome, other: Outcome, of: Callable[[Round], float]) -> Spread:
    """One outcome's figure over the other's in the same round, where both have one."""
    return Spread(tuple(of(mine) / of(theirs) for mine, theirs in zip(one.rounds, other.rounds, strict=False)))
