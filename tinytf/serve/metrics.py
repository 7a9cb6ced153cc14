"""What /metrics says, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tinytf.serve.job import Job
from tinytf.serve.models import Models

PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SPEEDS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class Metrics:
    """Of one server, since it was started."""

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tinytf_requests", "Requests answered", ("path", "status"), registry=self.registry)
        self._prompt = Counter("tinytf_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self._generated = Counter("tinytf_generated_tokens", "Tokens generated", registry=self.registry)
        self._first = Histogram(
            "tinytf_time_to_first_token_seconds", "From arrival, the queue included",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._speed = Histogram(
            "tinytf_tokens_per_second", "Of each text, after its first token", buckets=SPEEDS, registry=self.registry
        )
        self.registry.register(_Load(models))

    def answered(self, path: str, status: int) -> None:
        """A request; paths that there are not are one, whatever strangers ask for."""
        self.requests.labels(path if path in PATHS else "other", status).inc()

    def count(self, job: Job) -> None:
        """A job that has ended, or whose client has gone."""
        self._prompt.inc(job.prompt_tokens)
        self._generated.inc(job.completion_tokens)
        for text in job.texts:
            if text.first_token is None:
                continue
            self._first.observe(text.first_token - text.arrived)
            tokens = text.completion.tokens - 1
            if text.ended is not None and tokens > 0 and text.ended > text.first_token:
                self._speed.observe(tokens / (text.ended - text.first_token))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Load(Collector):
    """How many texts wait and how many are decoded, as it is when it is asked."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("tinytf_texts_waiting", "Texts in the queue", labels=["model"])
        running = GaugeMetricFamily("tinytf_texts_running", "Texts that are decoded", labels=["model"])
        for model in list(self._models.loaded.values()):
            waiting.add_metric([model.name], len(model.scheduler.waiting))
            running.add_metric([model.name], len(model.scheduler.running))
        yield waiting
        yield running
