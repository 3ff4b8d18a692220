"""Batching policies: which waiting rows are computed together."""

from dataclasses import dataclass

from heed.server.scheduling.model_queue import QueueEntry


class OneByOne:
    """One row at a time."""

    window = 1

    def choose_batch(self, waiting: list[QueueEntry], fair_tokens: int) -> list[QueueEntry]:
        return waiting[:1]

    def __str__(self) -> str:
        return "one by one"


@dataclass(frozen=True)
class SimilarLengths:
    """The first entry with those that are nearest to it in length, so that attention computes little padding.

    Less urgent entries take the room that more urgent ones leave.
    """

    max_tokens: int
    window: int = 32

    def choose_batch(self, waiting: list[QueueEntry], fair_tokens: int) -> list[QueueEntry]:
        first, *others = waiting
        length = first.tokens
        room = min(self.max_tokens, fair_tokens) - length
        batch = [first]
        for entry in sorted(others, key=lambda entry: (entry.level, abs(entry.tokens - length))):
            if entry.tokens > room:
                break
            batch.append(entry)
            room -= entry.tokens
        return batch

    def __str__(self) -> str:
        return f"rows of similar length, up to {self.max_tokens} tokens"
