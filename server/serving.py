"""A model that answers: whichever door a request came through, from here on its way is the same."""

import asyncio
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bundle.packing import Arrays
from server.attentions import Attentions
from server.limits import TEXTS, Limits
from server.model import Model
from server.requests import Request
from server.scheduler import Answered, Scheduler
from server.statistics import Statistics
from server.text import Side

# Shorter texts are tokenized at once: handing them to a thread would take longer than the work.
INLINE_CHARACTERS = 4096


@dataclass
class Serving:
    """The model, the queue of its plain answers, the attention weights with theirs, and what was asked of all that."""

    model: Model
    scheduler: Scheduler
    attentions: Attentions
    statistics: Statistics
    limits: Limits = Limits()
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def in_use(self) -> Iterator["Serving"]:
        """Until its end the model is not closed, even if another version has taken its place."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def prepare(self, inputs: Arrays, outputs: Iterable[str] = (), truncate: Side | None = None) -> Request:
        """Checks a request and makes rows of it, long texts in a thread.

        Raises:
            InvalidArgument: see `check_request` and `Limits`.
        """
        self.limits.check(inputs)
        texts = [inputs[name] for name in TEXTS if name in inputs]
        if sum(len(text) for array in texts for text in array.flat) > INLINE_CHARACTERS:
            return await asyncio.to_thread(self.model.prepare, inputs, outputs, truncate)
        return self.model.prepare(inputs, outputs, truncate)

    async def answer(self, request: Request, deadline: float = math.inf, priority: int = 0) -> Answered:
        """Waits for the answers to a request's rows.

        Args:
            deadline: on time.monotonic's clock.
            priority: 1 is the most urgent; 0 is the default.

        Raises:
            HeedError: see `Scheduler.submit` and `Attentions.loaded`.
        """
        scheduler = self.scheduler if request.kind == "answers" else (await self.attentions.loaded())[0]
        return await scheduler.submit(request.sequences, deadline, request.computed, priority)

    async def close(self) -> None:
        """Returns when everything that was taken is answered."""
        if self._users:
            await self._unused.wait()
        await self.scheduler.close()
        await self.attentions.close()
