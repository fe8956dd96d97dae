"""Metrics for Prometheus, served at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .jobs import Job, Jobs

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "artmancer_requests", "Requests answered.", ["route", "status"], registry=REGISTRY
)
_JOBS = Counter("artmancer_jobs", "Jobs that ended.", ["workflow", "state"], registry=REGISTRY)
_SECONDS = Histogram(
    "artmancer_job_seconds",
    "Seconds a job ran.",
    ["workflow"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    registry=REGISTRY,
)
_WAITING = Gauge("artmancer_jobs_waiting", "Jobs that wait.", ["lane"], registry=REGISTRY)
_SUBMITTED = Gauge(
    "artmancer_jobs_at_host", "Jobs submitted to a ComfyUI.", ["lane"], registry=REGISTRY
)
_UP = Gauge("artmancer_host_up", "Whether ComfyUI answers.", ["lane"], registry=REGISTRY)


def job_ended(job: Job) -> None:
    """Count a job that has ended."""
    _JOBS.labels(job.workflow, job.state).inc()
    if job.started and job.finished:
        _SECONDS.labels(job.workflow).observe(job.finished - job.started)


def text(jobs: Jobs) -> bytes:
    """Return the present values in Prometheus' text format."""
    for lane in jobs.lanes:
        waiting, submitted = jobs.load(lane)
        _WAITING.labels(lane).set(waiting)
        _SUBMITTED.labels(lane).set(submitted)
        _UP.labels(lane).set(jobs.comfy_status(lane).up)
    return bytes(generate_latest(REGISTRY))
