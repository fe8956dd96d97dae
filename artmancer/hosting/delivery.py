"""Webhooks on Modal: a call for each job with a webhook_url waits for the job's end and posts it.

The gateway spawns the call before the job, and Modal keeps it until it has returned: it runs again
where its container stopped. So the webhook is stored before it is sent, and no container of the
gateway has to run when a job ends.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace

from ..errors import ArtMancerError
from ..gateway.fetch import Fetcher
from ..gateway.jobs import Job
from ..gateway.settings import Settings
from ..gateway.webhooks import GIVE_UP_SECONDS, make_webhook, pause_after, send_webhook
from .modal_jobs import ModalJobs
from .remote import Remote, RetryingRemote, Unavailable
from .shared import SharedUploadStore

_PAUSE_SECONDS = 10.0
"""Seconds until a job is looked at again where Modal did not answer."""


async def deliver(
    job_id: str, call: str, remote: Remote, settings: Settings, fetcher: Fetcher
) -> None:
    """Wait for the end of a job, and send its webhook until its receiver has taken it; see
    gateway.webhooks.

    Parameters
    ----------
    call : id of this call. Of two calls for a job, the first does it
    """
    shared = RetryingRemote(remote)
    is_first = await shared.put_new(f"webhook:{job_id}", call)
    if not is_first and await shared.get(f"webhook:{job_id}") != call:
        return
    uploads = SharedUploadStore(settings.data / "pictures", shared)
    jobs = ModalJobs(settings, uploads, remote, {})
    webhook = make_webhook(await _ended(jobs, job_id), settings.public_url)
    secret = settings.webhook_secret
    # The operator may have removed the secret since the job was accepted.
    if webhook is None or secret is None:
        return
    while not await send_webhook(fetcher, webhook, secret.get_secret_value()):
        pause = pause_after(webhook.attempts)
        if time.time() + pause > webhook.created + GIVE_UP_SECONDS:
            return
        await asyncio.sleep(pause)
        webhook = replace(webhook, attempts=webhook.attempts + 1)


async def _ended(jobs: ModalJobs, job_id: str) -> Job:
    """Wait until a job has ended."""
    while True:
        try:
            job = await jobs.get(job_id)
            # It raises after a while, where a request would end.
            with suppress(ArtMancerError):
                job = await jobs.wait(job)
            if job.ended:
                return job
        except Unavailable:
            await asyncio.sleep(_PAUSE_SECONDS)
