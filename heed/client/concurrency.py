"""Concurrent asyncio calls whose results keep the order of their items."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Items = Iterable[Item] | AsyncIterable[Item]


async def in_order(
    function: Callable[[Item], Coroutine[Any, Any, Result]], items: Items[Item], at_once: int
) -> AsyncGenerator[Result]:
    """The result for each item, in the items' order, each as soon as it is ready, even if the next item takes long to
    come. `items` is read up to `at_once` ahead."""
    tasks: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()
    window = asyncio.Semaphore(at_once - 1)

    async def start() -> None:
        try:
            async for item in each_of(items):
                tasks.put_nowait(asyncio.create_task(function(item)))
                await window.acquire()
        finally:
            tasks.put_nowait(None)

    starter = asyncio.create_task(start())
    try:
        while task := await tasks.get():
            yield await task
            window.release()
        await starter  # raises the error of `items`, if it had one
    finally:
        unfinished: list[asyncio.Task[Any]] = [starter]
        while not tasks.empty():
            if task := tasks.get_nowait():
                unfinished.append(task)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


async def each_of(items: Items[Item]) -> AsyncGenerator[Item]:
    """The items of an iterable of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
