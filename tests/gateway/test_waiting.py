"""Waiting with a timeout."""

import asyncio

import pytest

from artmancer.gateway.waiting import within


def test_a_cancellation_is_never_lost() -> None:
    async def cancel_after(turns: int) -> bool:
        """Cancel a task some turns of the loop after its result; return whether it had ended."""
        event = asyncio.Event()
        task = asyncio.create_task(within(event.wait(), 60))
        for _ in range(3):
            await asyncio.sleep(0)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.cancel():
            return True
        with pytest.raises(asyncio.CancelledError):
            await task
        return False

    ends = [asyncio.run(cancel_after(turns)) for turns in range(8)]
    assert ends[0] is False and ends[-1] is True


def test_it_returns_raises_and_times_out() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    assert asyncio.run(within(asyncio.sleep(0, "a result"), 60)) == "a result"
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(within(fail(), 60))
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(within(asyncio.sleep(60), 0.01))
