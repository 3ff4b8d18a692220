"""How waiting entries become groups that are computed together."""

from dataclasses import dataclass
from typing import Protocol

from heed.server.scheduling.priority_queue import QueueEntry


class BatchingPolicy(Protocol):
    """Must take the first entry: that bounds everyone's wait."""

    @property
    def window(self) -> int:
        """How many of the entries that go next it wants to choose from."""

    def take(self, waiting: list[QueueEntry], fair_tokens: int) -> list[QueueEntry]:
        """The next group, out of the entries that go next, in their order (at least one, at most `window`).

        `fair_tokens` is one thread's share of all that waits and is under way: a larger group would leave others idle.
        """


class OneByOne:
    """One sequence at a time."""

    window = 1

    def take(self, waiting: list[QueueEntry], fair_tokens: int) -> list[QueueEntry]:
        return waiting[:1]

    def __str__(self) -> str:
        return "one by one"


@dataclass(frozen=True)
class SimilarLengths:
    """The first entry with those nearest to it in length, so that little padding is left inside attention.

    Less urgent entries get the room that more urgent ones leave.
    """

    max_tokens: int
    window: int = 32

    def take(self, waiting: list[QueueEntry], fair_tokens: int) -> list[QueueEntry]:
        first, *others = waiting
        length = len(first.sequence)
        room = min(self.max_tokens, fair_tokens) - length
        group = [first]
        for entry in sorted(others, key=lambda entry: (entry.level, abs(len(entry.sequence) - length))):
            if len(entry.sequence) > room:
                break
            group.append(entry)
            room -= len(entry.sequence)
        return group

    def __str__(self) -> str:
        return f"neighbours in length, up to {self.max_tokens} tokens"
