"""A model that answers: whichever door a request came through, from here on its way is the same."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Event

from heed.bundle.packing import Arrays
from heed.server.engine.model import Model
from heed.server.repository.attentions import Attentions
from heed.server.requests.limits import TEXTS, Limits
from heed.server.requests.preprocess import Request, RequestSpec, check_form
from heed.server.requests.tokenizer import Side
from heed.server.scheduling.scheduler import RequestResult, Scheduler
from heed.server.telemetry.statistics import Statistics

# Smaller requests are read at once: handing them to a thread would take longer than the work.
INLINE_CHARACTERS = 4096
TEXT_CHARACTERS = 32  # that a text counts as, however short it is
INLINE_VALUES = 2**16  # of the tensor that a request is about


def _is_large(form: RequestSpec, inputs: Arrays) -> bool:
    if form.main != "text":
        return inputs[form.main].size > INLINE_VALUES
    texts = [inputs[name] for name in TEXTS if name in inputs]
    return sum(TEXT_CHARACTERS + len(text) for array in texts for text in array.flat) > INLINE_CHARACTERS


@dataclass(eq=False)
class ServedModel:
    """The model, the queue of its plain answers, the attention weights with theirs, and what was asked of all that.

    Within a `with` of it the model is not closed, even if another version has taken its place.
    """

    model: Model
    scheduler: Scheduler
    attentions: Attentions
    statistics: Statistics
    limits: Limits = Limits()
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> "ServedModel":
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def prepare(self, inputs: Arrays, outputs: Iterable[str] = (), truncate: Side | None = None) -> Request:
        """Checks a request and makes rows of it.

        Raises:
            InvalidArgument: see `check_form` and `read`.
        """
        return await self.read(check_form(self.model.manifest, inputs, outputs), inputs, truncate)

    async def read(self, form: RequestSpec, inputs: Arrays, truncate: Side | None = None) -> Request:
        """Rows of a request that has this form, of a large one in a thread, which ends soon if the caller goes.

        Raises:
            InvalidArgument: see `Limits` and `read_request`.
        """
        self.limits.check(form.main, inputs)
        if not _is_large(form, inputs):
            return self.model.read(form, inputs, truncate)
        over = Event()
        try:
            return await asyncio.to_thread(self.model.read, form, inputs, truncate, lambda: not over.is_set())
        finally:
            over.set()

    async def answer(self, request: Request, deadline: float = math.inf, priority: int = 0) -> RequestResult:
        """Waits for the answers to a request's rows.

        Args:
            deadline: on time.monotonic's clock.
            priority: 1 is the most urgent; 0 is the default.

        Raises:
            HeedError: see `Scheduler.submit` and `Attentions.loaded`.
        """
        scheduler = self.scheduler if request.form.kind == "answers" else (await self.attentions.loaded())[0]
        return await scheduler.submit(request.sequences, deadline, request.form.computed, priority)

    async def close(self) -> None:
        """Returns when everything that was taken is answered."""
        if self._users:
            await self._unused.wait()
        await self.scheduler.close()
        await self.attentions.close()
