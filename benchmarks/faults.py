"""Faults at random under a gateway that works: no job may be lost, doubled or left without an end.

The gateway is a process with its data on a small disk of its own, in front of the tests' fake
ComfyUI. While clients send jobs, the disk fills up, the clock is set, the gateway and ComfyUI are
killed, and connections are cut. Then the faults stop, and every job that was accepted is asked for.

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
from PIL import Image
from report import Row, finish
from support.gateway import FakeHost, free_port

CLIENTS = 8
"""Clients that send jobs at the same time."""

DISK_BYTES = 64 * 2**20
"""Size of the gateway's disk."""

CLOCK_STEPS = (3600.0, -3600.0, 2 * 86400.0, -2 * 86400.0)
"""Seconds by which the clock is set."""

PATIENCE = 300.0
"""Seconds to wait for the ends of all jobs after the last fault."""

CANCELLED_SHARE = 0.05
"""Share of the jobs that their client cancels."""


def serve(port: int, data: str, comfyui: str, clock: str) -> None:
    """Serve a gateway whose wall clock is off by the seconds in a file."""
    import uvicorn

    from artmancer.gateway.app import create_app
    from artmancer.gateway.settings import Settings

    with open(clock, "rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time
    time.time = lambda: real() + struct.unpack("d", offset[:8])[0]
    settings = Settings(_env_file=None, data=Path(data), comfyui_url=comfyui, max_per_client=10_000)
    uvicorn.run(create_app(settings), port=port, log_level="critical", access_log=False)


class Faults:
    """The faults, and what they are done to.

    Attributes
    ----------
    counts : number of faults by kind
    lives : how often ComfyUI was started
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.counts: Counter[str] = Counter()
        self.disk = folder / "disk"
        self.clock = folder / "clock"
        self.clock.write_bytes(struct.pack("d", 0.0))
        self.port = free_port()
        self.host = FakeHost()
        self.lives = 0
        self._log()
        self.start_gateway()

    def _log(self) -> None:
        self.lives += 1
        self.host.fake.log = self.folder / f"runs-{self.lives}.log"

    def start_gateway(self) -> None:
        """Start the gateway, and wait until it answers."""
        arguments = [str(self.port), str(self.disk / "data"), self.host.url, str(self.clock)]
        self.gateway = subprocess.Popen([sys.executable, __file__, "--serve", *arguments])
        with httpx.Client(trust_env=False) as http:
            while self.gateway.poll() is None:
                with suppress(httpx.HTTPError):
                    http.get(f"http://127.0.0.1:{self.port}/ping")
                    return
                time.sleep(0.05)

    def kill_gateway(self) -> None:
        """Kill the gateway, and start it again."""
        self.gateway.send_signal(signal.SIGKILL)
        self.gateway.wait()
        self.start_gateway()

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
            "gateway killed": self.kill_gateway,
            "ComfyUI killed": self.kill_comfyui,
            "connections cut": self.cut_connections,
            "disk full": self.fill_disk,
            "clock set": self.set_clock,
        }
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.5, 4))
            kind = self.chance.choice(list(kinds))
            kinds[kind]()
            self.counts[kind] += 1
            if self.gateway.poll() is not None:
                self.counts["gateway did not start"] += 1
                self.start_gateway()

    def doubled(self) -> int:
        """Return how many runs were completed twice in one life of ComfyUI."""
        counts: Counter[str] = Counter()
        for log in self.folder.glob("runs-*.log"):
            lines = log.read_text().splitlines()
            counts.update(f"{log.name} {line}" for line in lines if line.startswith("completed"))
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
    """Clients that send jobs, and what became of those that were accepted.

    Attributes
    ----------
    accepted : seed of each job by its id
    cancelling : ids of jobs that their client cancels
    cancelled : ids of jobs whose cancel was confirmed
    refused : how often a job was refused, by error code
    """

    def __init__(self, url: str, jobs: int, seconds: float, seed: int) -> None:
        self.url = url
        self.seconds = seconds
        self.pause = CLIENTS * seconds / jobs
        self.seeds = iter(range(jobs))
        self.seed = seed
        self.lock = threading.Lock()
        self.accepted: dict[str, int] = {}
        self.cancelling: set[str] = set()
        self.cancelled: set[str] = set()
        self.refused: Counter[str] = Counter()

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
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk"):
        chance = random.Random(seed)
        faults = Faults(Path(name), chance)
        clients = Clients(f"http://127.0.0.1:{faults.port}", jobs, 60 * minutes, seed)
        threads = [
            threading.Thread(target=clients.send, args=(number,), daemon=True)
            for number in range(CLIENTS)
        ]
        try:
            for thread in threads:
                thread.start()
            faults.strike(60 * minutes)
            for thread in threads:
                thread.join()
            ends = clients.ends()
        finally:
            faults.gateway.kill()
            faults.gateway.wait()
            faults.host.die()
        rows = [
            Row("minutes of faults", minutes, ""),
            *(Row(f"faults: {kind}", count, "") for kind, count in sorted(faults.counts.items())),
            *(Row(f"refused: {code}", n, "") for code, n in sorted(clients.refused.items())),
            Row("jobs that were accepted", len(clients.accepted), ""),
            *(Row(f"jobs: {kind}", count, "") for kind, count in sorted(ends.items())),
            Row("lost", ends["lost"], "", 0),
            Row("with a wrong end", _bad(ends), "", 0),
            Row("doubled", faults.doubled(), "", 0),
            Row("without an end", ends["no end"], "", 0),
        ]
    return rows


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
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), *sys.argv[3:])
    else:
        sys.exit(main())
