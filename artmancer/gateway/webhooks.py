"""Webhooks: a POST to a client's URL when its job has ended, after the Standard Webhooks
specification.

A webhook is in the database before it is sent, and until its receiver has taken it. It may come
twice, with the same `webhook-id`, where the gateway stops before it has stored the answer.
"""

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone

import httpx
from pydantic_core import to_json

from ..errors import ArtMancerError
from . import logs
from .clock import SteadyClock
from .fetch import Fetcher
from .job_store import JobStore, Webhook
from .jobs import Job
from .schemas import JobStatus
from .waiting import within

logger = logging.getLogger(__name__)

PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0)
"""Seconds before each further try; the last pause is repeated."""

GIVE_UP_SECONDS = 24 * 3600.0
"""Seconds after which a webhook that nobody took is given up."""

_PER_HOST = 4
"""Webhooks that are sent to a host at the same time, so that one that hangs does not hold up the
others.
"""

_LONGEST_WAIT = 60.0
"""Longest time between two looks at the database, in seconds."""

_RETRY_STORE_SECONDS = 1.0
"""Pause after the disk refused to store what became of a webhook."""

_GONE = 410
"""Status with which a receiver wants no more of it."""

_TYPES = {"done": "job.done", "error": "job.failed", "cancelled": "job.cancelled"}
"""Type of the event by the state of the job."""


def make_webhook(job: Job, public_url: str) -> Webhook | None:
    """Make the webhook of a job that has ended; None: its request wants none.

    Parameters
    ----------
    public_url : address of the gateway, in front of the result's path
    """
    url = job.record.context.get("webhook")
    if not url or not job.ended:
        return None
    result = f"{public_url}/api/generate/result/{job.id}" if job.state == "done" else None
    body = {
        "type": _TYPES[job.state],
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "data": {**JobStatus.of(job).model_dump(), "result_url": result},
    }
    created = job.finished or 0.0
    return Webhook(f"msg_{job.id}", url, to_json(body).decode(), created, 0, created)


async def send_webhook(fetcher: Fetcher, webhook: Webhook, secret: str) -> bool:
    """Send a webhook once; return whether its receiver took it, or wants no more of it.

    Parameters
    ----------
    secret : signs it; "whsec_" and base64
    """
    try:
        status = await fetcher.send(
            "POST", webhook.url, "webhook_url", webhook.body.encode(), _headers(webhook, secret)
        )
        outcome = f"status {status}"
    except (ConnectionError, ArtMancerError) as error:
        status, outcome = 0, str(error)
    logs.log_event(
        logger, "webhook sent", webhook=webhook.id, tries=webhook.attempts + 1, outcome=outcome
    )
    return 200 <= status < 300 or status == _GONE


def pause_after(attempts: int) -> float:
    """Return the seconds between a try and the next.

    Parameters
    ----------
    attempts : tries before it
    """
    return PAUSES[min(attempts, len(PAUSES) - 1)]


def _headers(webhook: Webhook, secret: str) -> dict[str, str]:
    """Return the headers of one sending, which sign the body and the time."""
    from standardwebhooks import Webhook as Signer

    # The receiver compares the time with its own clock.
    now = datetime.fromtimestamp(int(time.time()), timezone.utc)
    return {
        "Content-Type": "application/json",
        "webhook-id": webhook.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(secret).sign(webhook.id, now, webhook.body),
    }


class Webhooks:
    """Sends the webhooks of the database.

    Parameters
    ----------
    secret : signs them; "whsec_" and base64
    """

    def __init__(
        self, store: JobStore, fetcher: Fetcher, secret: str | None, clock: SteadyClock
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._secret = secret
        self._clock = clock
        self._changed = asyncio.Event()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()

    def look(self) -> None:
        """Look at the database soon: it has another webhook."""
        self._changed.set()

    async def run(self) -> None:
        """Send webhooks until cancelled."""
        try:
            while True:
                self._changed.clear()
                wait = self._start_due() if self._secret else _LONGEST_WAIT
                with suppress(asyncio.TimeoutError):
                    await within(self._changed.wait(), wait)
        finally:
            for task in self._sending.values():
                task.cancel()
            await asyncio.gather(*self._sending.values(), return_exceptions=True)

    def _start_due(self) -> float:
        """Start to send what is due; return the seconds until the next is."""
        now = self._clock.now()
        wait = _LONGEST_WAIT
        for webhook in self._store.webhooks():
            host = httpx.URL(webhook.url).host
            if webhook.id in self._sending or self._hosts[host] >= _PER_HOST:
                continue  # the end of a sending makes another look
            if webhook.due > now:
                wait = min(wait, webhook.due - now)
                continue
            self._hosts[host] += 1
            task = asyncio.create_task(self._send(webhook))
            self._sending[webhook.id] = task
            task.add_done_callback(self._on_sent(webhook.id, host))
        return wait

    def _on_sent(self, webhook_id: str, host: str) -> Callable[["asyncio.Task[None]"], None]:
        def on_sent(task: "asyncio.Task[None]") -> None:
            del self._sending[webhook_id]
            self._hosts[host] -= 1
            self._changed.set()

        return on_sent

    async def _send(self, webhook: Webhook) -> None:
        """Send a webhook once, and store what became of it."""
        is_settled = await send_webhook(self._fetcher, webhook, str(self._secret))
        due = self._clock.now() + pause_after(webhook.attempts)
        if is_settled or due > webhook.created + GIVE_UP_SECONDS:
            await self._stored(lambda: self._store.remove_webhook(webhook.id))
        else:
            await self._stored(lambda: self._store.retry_webhook(webhook.id, due))

    async def _stored(self, store: Callable[[], None]) -> None:
        """Store a change, again and again while the disk refuses it."""
        while True:
            try:
                store()
            except sqlite3.Error:
                logger.exception("the state of a webhook could not be stored")
                await asyncio.sleep(_RETRY_STORE_SECONDS)
            else:
                return
