"""Faults at random under a gateway that works: no job may be lost, doubled or left without an end.

One gateway is a process with its data on a small disk of its own, in front of the tests' fake
ComfyUI. While clients send jobs, the disk fills up, the clock is set, the gateway and ComfyUI are
killed, and connections are cut. A second gateway is in front of the tests' fake Modal, where one
request in ten fails; it and its workers are killed. Then the faults stop, and every job that was
accepted is asked for.

Usage: python benchmarks/faults.py [--json] [--minutes N] [--jobs N] [--seed N]
"""

import argparse
import base64
import io
import mmap
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
import uvicorn
from fastapi import FastAPI
from PIL import Image
from report import Row, finish
from support.fake_modal import FakeModal, RandomFailures, connect, gateway_app
from support.gateway import FakeHost, free_port, settings

from artmancer.gateway.app import create_app

LOCAL_CLIENTS = 6
"""Clients that send jobs to the gateway with its own queue at the same time."""

MODAL_CLIENTS = 2
"""Clients that send jobs to the gateway on Modal at the same time."""

FAILED_SHARE = 0.1
"""Share of the requests to Modal that fail."""

DISK_BYTES = 64 * 2**20
"""Size of the gateway's disk."""

CLOCK_STEPS = (3600.0, -3600.0, 2 * 86400.0, -2 * 86400.0)
"""Seconds by which the clock is set."""

PATIENCE = 300.0
"""Seconds to wait for the ends of all jobs after the last fault."""

CANCELLED_SHARE = 0.05
"""Share of the jobs that their client cancels."""


def serve(port: str, data: str, comfyui: str, clock: str) -> None:
    """Serve a gateway whose wall clock is off by the seconds in a file."""
    with open(clock, "rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time
    time.time = lambda: real() + struct.unpack("d", offset[:8])[0]
    gateway_settings = settings(Path(data), comfyui_url=comfyui, max_per_client=10_000)
    run(create_app(gateway_settings), port)


def serve_on_modal(port: str, data: str, board: str, results: str, failures: str) -> None:
    """Serve a gateway on a fake Modal where requests fail; each adds a byte to a file."""

    class CountedFailures(RandomFailures):
        def _raise(self, share: float) -> None:
            before = self.failed
            try:
                super()._raise(share)
            finally:
                if self.failed > before:
                    with open(failures, "ab") as file:
                        file.write(b"x")

    seed = random.randrange(2**32)
    remote = connect(int(board), Path(results), CountedFailures(FAILED_SHARE, seed))
    run(gateway_app(remote, settings(Path(data), max_per_client=10_000)), port)


def run(app: FastAPI, port: str) -> None:
    """Serve an app until the process ends."""
    uvicorn.run(app, port=int(port), log_level="critical", access_log=False)


SERVERS = {"--serve": serve, "--serve-on-modal": serve_on_modal}
"""Functions that a gateway's process runs, by its first argument."""


class GatewayProcess:
    """A gateway in a process of its own.

    Parameters
    ----------
    arguments : a name in SERVERS; the arguments of the function after the port
    """

    def __init__(self, *arguments: object) -> None:
        self.port = str(free_port())
        name, *rest = map(str, arguments)
        self._command = [sys.executable, __file__, name, self.port, *rest]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(self._command)
        with httpx.Client(trust_env=False) as http:
            while self.is_running:
                with suppress(httpx.HTTPError):
                    http.get(f"http://127.0.0.1:{self.port}/ping")
                    return
                time.sleep(0.05)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_and_start(self) -> None:
        """Kill it, and start it again."""
        self.kill()
        self.start()


class Faults:
    """The faults, and what they are done to.

    Attributes
    ----------
    counts : number of faults by kind
    lives : how often ComfyUI was started
    local, on_modal : the gateways
    """

    def __init__(self, folder: Path, chance: random.Random, modal: FakeModal) -> None:
        self.folder = folder
        self.chance = chance
        self.modal = modal
        self.counts: Counter[str] = Counter()
        self.disk = folder / "disk"
        self.clock = folder / "clock"
        self.clock.write_bytes(struct.pack("d", 0.0))
        self.failures = folder / "failures"
        self.failures.touch()
        self.host = FakeHost()
        self.lives = 0
        self._log()
        data = self.disk / "data"
        self.local = GatewayProcess("--serve", data, self.host.url, self.clock)
        self.on_modal = GatewayProcess(
            "--serve-on-modal", folder / "container", modal.port, modal.results, self.failures
        )

    def _log(self) -> None:
        self.lives += 1
        self.host.fake.log = self.folder / f"runs-{self.lives}.log"

    def kill_comfyui(self) -> None:
        """Kill ComfyUI, and start it again after a moment."""
        self.host.die()
        time.sleep(self.chance.uniform(0, 2))
        self.host.start()
        self._log()

    def cut_connections(self) -> None:
        """Cut the connections between the gateway and ComfyUI."""

        def cut() -> None:
            for socket in list(self.host.fake.sockets.values()):
                if socket._req and socket._req.transport:
                    socket._req.transport.abort()

        self.host.loop.call_soon_threadsafe(cut)

    def fill_disk(self) -> None:
        """Fill the disk for a moment."""
        filler = self.disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        time.sleep(self.chance.uniform(0.2, 3))
        filler.unlink()

    def set_clock(self) -> None:
        """Set the gateway's clock."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("d", self.chance.choice(CLOCK_STEPS)))

    def strike(self, seconds: float) -> None:
        """Do faults at random for this many seconds."""
        kinds: dict[str, Callable[[], None]] = {
            "gateway killed": self.local.kill_and_start,
            "ComfyUI killed": self.kill_comfyui,
            "connections cut": self.cut_connections,
            "disk full": self.fill_disk,
            "clock set": self.set_clock,
            "gateway on Modal killed": self.on_modal.kill_and_start,
            "worker on Modal killed": lambda: self.modal.kill("heavy"),
        }
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.5, 4))
            kind = self.chance.choice(list(kinds))
            kinds[kind]()
            self.counts[kind] += 1
            for gateway in (self.local, self.on_modal):
                if not gateway.is_running:
                    self.counts["gateway did not start"] += 1
                    gateway.start()
        self.counts["request to Modal failed"] = self.failures.stat().st_size

    def stop(self) -> None:
        """End both gateways and ComfyUI."""
        self.local.kill()
        self.on_modal.kill()
        self.host.die()

    def doubled(self) -> int:
        """Return how many runs were completed twice in one life of a ComfyUI."""
        counts: Counter[str] = Counter()
        for log in (*self.folder.glob("runs-*.log"), *self.modal.folder.glob("*/events.log")):
            lines = log.read_text().splitlines()
            counts.update(f"{log} {line}" for line in lines if line.startswith("completed"))
        return sum(count > 1 for count in counts.values())


WHITE = (255, 255, 255)


def color(seed: int) -> tuple[int, int, int]:
    """Return the color of a job's image."""
    return seed % 251, seed // 251, 7


def encoded(rgb: tuple[int, int, int]) -> str:
    """Return an image of one color as base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), rgb).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Clients:
    """Clients that send jobs to a gateway, and what became of those that were accepted.

    Parameters
    ----------
    number : of clients

    Attributes
    ----------
    accepted : seed of each job by its id
    cancelling : ids of jobs that their client cancels
    cancelled : ids of jobs whose cancel was confirmed
    refused : how often a job was refused, by error code
    """

    def __init__(self, port: str, number: int, jobs: int, seconds: float, seed: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.seconds = seconds
        self.pause = number * seconds / jobs
        self.seeds = iter(range(jobs))
        self.seed = seed
        self.lock = threading.Lock()
        self.accepted: dict[str, int] = {}
        self.cancelling: set[str] = set()
        self.cancelled: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.threads = [
            threading.Thread(target=self.send, args=(client,), daemon=True)
            for client in range(number)
        ]

    def _seed(self) -> int | None:
        with self.lock:
            return next(self.seeds, None)

    def send(self, client: int) -> None:
        """Send jobs until none is left."""
        chance = random.Random(f"{self.seed} {client}")
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as http:
            while (seed := self._seed()) is not None:
                body = {"prompt": "slow 0.05", "seed": seed}
                body |= {"input_image": encoded(color(seed)), "mask_image": encoded(WHITE)}
                job_id = self._accepted(http, body)
                self.accepted[job_id] = seed
                if chance.random() < CANCELLED_SHARE:
                    self.cancelling.add(job_id)
                    with suppress(httpx.HTTPError, ValueError, KeyError):
                        answer = http.post(f"/api/jobs/{job_id}/cancel").json()
                        if answer["success"]:
                            self.cancelled.add(job_id)
                time.sleep(chance.uniform(0, 2 * self.pause))

    def _accepted(self, http: httpx.Client, body: dict[str, Any]) -> str:
        """Send a job until it is accepted; return its id."""
        while True:
            with suppress(httpx.HTTPError):
                answer = http.post("/api/generate/async", json=body)
                if answer.status_code == 202:
                    return str(answer.json()["task_id"])
                self.refused[answer.json()["error_type"]] += 1
            time.sleep(0.2)

    def ends(self) -> Counter[str]:
        """Ask for every accepted job, and return how many have each end: "done", "wrong image",
        "wrong time", "lost", "no end", "cancelled" or "failed: " and the reason.
        """
        ends: Counter[str] = Counter()
        end = time.monotonic() + PATIENCE
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as http:
            for job_id, seed in self.accepted.items():
                ends[self._end(http, job_id, seed, end)] += 1
        return ends

    def _end(self, http: httpx.Client, job_id: str, seed: int, end: float) -> str:
        while time.monotonic() < end:
            answer = http.get(f"/api/jobs/{job_id}")
            if answer.status_code == 404:
                return "lost"
            status = answer.json()
            if status["status"] == "error":
                return f"failed: {status['error'][:60]}"
            if status["status"] == "cancelled":
                return "cancelled" if job_id in self.cancelling else "cancelled by nobody"
            if status["status"] == "done":
                if job_id in self.cancelled:
                    return "wrong: done after a confirmed cancel"
                result = http.get(f"/api/generate/result/{job_id}")
                if result.status_code != 200:
                    return f"no result: {result.json()['detail'][:60]}"
                fields = result.json()
                image = Image.open(io.BytesIO(base64.b64decode(fields["image"])))
                # The fake ComfyUI returns the image that it got.
                is_own = image.convert("RGB").getpixel((0, 0)) == color(seed)
                if not is_own:
                    return "wrong image"
                is_possible = 0 <= fields["generation_time"] < self.seconds + PATIENCE
                return "done" if is_possible else "wrong time"
            time.sleep(0.2)
        return "no end"


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk in a folder."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def measure(minutes: float, jobs: int, seed: int) -> list[Row]:
    """Do the faults and count the ends."""
    seconds = 60 * minutes
    modal_jobs = jobs * MODAL_CLIENTS // (LOCAL_CLIENTS + MODAL_CLIENTS)
    with (
        tempfile.TemporaryDirectory() as name,
        small_disk(Path(name) / "disk"),
        FakeModal(Path(name) / "modal", share=FAILED_SHARE, seed=seed) as modal,
    ):
        faults = Faults(Path(name), random.Random(seed), modal)
        port, modal_port = faults.local.port, faults.on_modal.port
        clients = {
            "": Clients(port, LOCAL_CLIENTS, jobs - modal_jobs, seconds, seed),
            "on Modal, ": Clients(modal_port, MODAL_CLIENTS, modal_jobs, seconds, seed),
        }
        threads = [thread for some in clients.values() for thread in some.threads]
        try:
            for thread in threads:
                thread.start()
            faults.strike(seconds)
            for thread in threads:
                thread.join()
            ends = {place: some.ends() for place, some in clients.items()}
        finally:
            faults.stop()
        total = sum(ends.values(), Counter())
        return [
            Row("minutes of faults", minutes, ""),
            *(Row(f"faults: {kind}", count, "") for kind, count in sorted(faults.counts.items())),
            *(row for place, some in clients.items() for row in _rows(place, some, ends[place])),
            Row("lost", total["lost"], "", 0),
            Row("with a wrong end", _bad(total), "", 0),
            Row("doubled", faults.doubled(), "", 0),
            Row("without an end", total["no end"], "", 0),
        ]


def _rows(place: str, clients: Clients, ends: Counter[str]) -> list[Row]:
    """Return what became of the jobs of one gateway.

    Parameters
    ----------
    place : beginning of the rows' names
    """
    return [
        *(Row(f"{place}refused: {code}", n, "") for code, n in sorted(clients.refused.items())),
        Row(f"{place}jobs that were accepted", len(clients.accepted), ""),
        *(Row(f"{place}jobs: {kind}", count, "") for kind, count in sorted(ends.items())),
    ]


FAIR_FAILURES = ("failed: The disk", "failed: ComfyUI stopped 2 times")
"""Beginnings of the ends that a job may have under these faults, besides done and cancelled."""


def _bad(ends: Counter[str]) -> int:
    """Return how many jobs have an end that no fault explains."""
    fair = ("done", "cancelled", "lost", "no end", *FAIR_FAILURES)
    return sum(
        count
        for kind, count in ends.items()
        if not kind.startswith(fair) or kind == "cancelled by nobody"
    )


def main() -> int:
    """Do the faults and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--minutes", type=float, default=20, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; default: %(default)s")
    options = parser.parse_args()
    return finish(measure(options.minutes, options.jobs, options.seed), options.json)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in SERVERS:
        SERVERS[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())
