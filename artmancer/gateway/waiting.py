"""Waiting with a timeout."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(awaited: Awaitable[T], timeout: float) -> T:
    """Wait for a result, as asyncio.wait_for does.

    Before Python 3.12, asyncio.wait_for ignores a cancellation that comes when the result has just
    come. Then a task that waits again and again would not stop.

    Parameters
    ----------
    timeout : in seconds

    Raises
    ------
    asyncio.TimeoutError
    """
    task = asyncio.ensure_future(awaited)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    finally:
        task.cancel()
    if not done:
        raise asyncio.TimeoutError
    return task.result()
