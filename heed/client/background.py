"""The event loop on which synchronous clients make calls at the same time."""

import asyncio
import atexit
import gc
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from grpc import StatusCode

from heed.client.calls import ModelCalls
from heed.client.wire import CallError

Result = TypeVar("Result")
EXIT_SECONDS = 5.0  # that the end of the program waits for the loop to stop

# Makes the coroutine of a call, and again if the loop was stopped before the call was answered.
Make = Callable[[], Coroutine[Any, Any, Result]]


class BackgroundLoop:
    """One event loop on a daemon thread, for all synchronous clients of the process. Started by the first call on it.

    grpc.aio has a thread of its own that does not survive a fork, and keeps gRPC from preparing for one: calls in the
    child would hang. So before a fork the loop is stopped and all of its channels are closed. What was in flight is
    sent again, on a new loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while the loop is started, stopped or given a call, and during a fork
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._tasks: dict[Future[Any], asyncio.Task[Any]] = {}  # on the loop's thread alone
        self._users: WeakSet[ModelCalls] = WeakSet()
        self._at_exit = False
        self.stops = 0  # how often the loop was stopped
        atexit.register(self._exit)
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._lock.release, after_in_child=self._lock.release
        )

    def add_user(self, calls: ModelCalls) -> None:
        """The transports of these are closed when the loop stops."""
        with self._lock:
            self._users.add(calls)

    def run(self, make: Make[Result]) -> Result:
        """Waits for the result. Whatever ends the waiting, KeyboardInterrupt say, cancels the call."""
        call = BackgroundCall(self, make)
        try:
            return call.result()
        finally:
            call.cancel()

    def close(self, calls: ModelCalls) -> None:
        """Closes what `calls` has open on the loop."""
        if self._loop and not self._at_exit:
            self.run(calls.close)

    def close_soon(self, calls: ModelCalls) -> None:
        """`close` without waiting and without the lock: for finalizers, which run at any time on any thread."""
        if loop := self._loop:
            with suppress(RuntimeError):  # the loop is closed, and with it all transports
                loop.call_soon_threadsafe(lambda: loop.create_task(calls.close()))

    def submit(self, make: Make[Result]) -> Future[Result]:
        with self._lock:
            if self._at_exit:
                raise CallError(StatusCode.CANCELLED, "the program is ending")
            if self._loop is None:
                self._start()
            assert self._loop
            future = Future[Result]()
            self._loop.call_soon_threadsafe(self._begin, make(), future)
            return future

    def cancel(self, future: Future[Any]) -> None:
        """Does nothing if the call has ended."""
        if (loop := self._loop) and not future.done():
            with suppress(RuntimeError):  # the loop is closed, and with it the call
                loop.call_soon_threadsafe(self._cancel, future)

    def _begin(self, coroutine: Coroutine[Any, Any, Result], future: Future[Result]) -> None:
        self._tasks[future] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[future].add_done_callback(lambda task: self._finish(task, future))

    def _finish(self, task: asyncio.Task[Result], future: Future[Result]) -> None:
        """Neither the future nor a CallError refers to the task or its frames: who keeps them would keep gRPC's objects
        alive when the loop stops. So the traceback of a CallError begins in the caller's thread."""
        del self._tasks[future]
        if task.cancelled():
            future.cancel()
            future.set_running_or_notify_cancel()
        elif error := task.exception():
            if isinstance(error, CallError):
                error.__traceback__ = error.__context__ = None
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def _cancel(self, future: Future[Any]) -> None:
        if task := self._tasks.get(future):
            task.cancel()

    def _start(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="heed-client", daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    async def _serve(self, started: "Future[asyncio.AbstractEventLoop]") -> None:
        self._stop = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for user in list(self._users):
            await user.close_transports()

    def _stop_loop(self, timeout: float | None = None) -> None:
        """Needs the lock: what was submitted before has begun, and ends as cancelled."""
        if self._loop and self._thread:
            self.stops += 1  # before anybody hears of a call that was cancelled
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout)
            self._loop = self._thread = None

    def _before_fork(self) -> None:
        self._lock.acquire()
        if self._loop:
            self._stop_loop()
            gc.collect()  # grpc.aio's thread ends with the last of its objects

    def _exit(self) -> None:
        with self._lock:
            self._at_exit = True
            self._stop_loop(EXIT_SECONDS)


class BackgroundCall(Generic[Result]):
    """A call on the loop."""

    def __init__(self, loop: BackgroundLoop, make: Make[Result]) -> None:
        self._loop, self._make = loop, make
        self._stops = loop.stops
        self._future = loop.submit(make)

    def done(self) -> bool:
        """Whether `result` has something to return or raise at once."""
        return self._future.done()

    def result(self) -> Result:
        while True:
            try:
                return self._future.result()
            except CancelledError:
                if self._loop.stops == self._stops:
                    raise
            self._stops = self._loop.stops
            self._future = self._loop.submit(self._make)

    def cancel(self) -> None:
        """Does nothing if the call has ended."""
        self._loop.cancel(self._future)


BACKGROUND = BackgroundLoop()
