"""What /metrics tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .jobs import Job, Jobs

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "artmancer_requests", "Requests answered.", ["route", "status"], registry=REGISTRY
)
_JOBS = Counter("artmancer_jobs", "Jobs that ended.", ["workflow", "state"], registry=REGISTRY)
_SECONDS = Histogram(
    "artmancer_job_seconds",
    "Time a job ran.",
    ["workflow"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    registry=REGISTRY,
)
_WAITING = Gauge("artmancer_jobs_waiting", "Jobs that wait.", ["lane"], registry=REGISTRY)
_AT_HOST = Gauge(
    "artmancer_jobs_at_host", "Jobs handed over to where they run.", ["lane"], registry=REGISTRY
)
_UP = Gauge("artmancer_host_up", "Whether ComfyUI answers.", ["lane"], registry=REGISTRY)


def ended(job: Job) -> None:
    _JOBS.labels(job.workflow, job.state).inc()
    if job.started and job.finished:
        _SECONDS.labels(job.workflow).observe(job.finished - job.started)


def text(jobs: Jobs) -> bytes:
    """The present state in Prometheus' text format."""
    for lane in jobs.lanes:
        waiting, at_host = jobs.load(lane)
        _WAITING.labels(lane).set(waiting)
        _AT_HOST.labels(lane).set(at_host)
        _UP.labels(lane).set(jobs.host(lane).up)
    return bytes(generate_latest(REGISTRY))
