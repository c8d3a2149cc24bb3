"""Counters and histograms for Prometheus; every application has a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from diffulex_serve.engine.messages import Ended, Load
from diffulex_serve.engine.protocols import EngineClient
from diffulex_serve.engine.status import EngineState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TPF = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)
_ROWS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class EngineCollector(Collector):
    """What can be read off the engines when somebody asks: their states, deaths and restarts."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask the engines to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        deaths = CounterMetricFamily(
            "diffulex_engine_deaths",
            "Engines that died, got stuck or could not load, by the error.",
            labels=["replica", "kind"],
        )
        restarts = CounterMetricFamily(
            "diffulex_engine_restarts", "Engines that took the place of one that died.", labels=["replica"]
        )
        ready = GaugeMetricFamily("diffulex_replica_up", "1 while the replica takes requests.", labels=["replica"])
        requests = GaugeMetricFamily(
            "diffulex_replica_requests", "Requests of a replica: running, waiting.", labels=["replica", "state"]
        )
        pages = GaugeMetricFamily(
            "diffulex_replica_kv_pages", "Pages of a replica's KV cache: used, free.", labels=["replica", "state"]
        )
        age = GaugeMetricFamily(
            "diffulex_replica_last_step_age_seconds", "Since the replica's latest step.", labels=["replica"]
        )
        for index, status in enumerate(self._client.replicas):
            name = str(index)
            for kind, count in sorted(status.deaths.items()):
                deaths.add_metric([name, kind], count)
            restarts.add_metric([name], status.restarts)
            ready.add_metric([name], status.state is EngineState.READY)
            requests.add_metric([name, "running"], status.running)
            requests.add_metric([name, "waiting"], status.waiting)
            pages.add_metric([name, "used"], status.load.pages - status.load.free_pages)
            pages.add_metric([name, "free"], status.load.free_pages)
            if status.step_age is not None:
                age.add_metric([name], round(status.step_age, 3))
        yield from (deaths, restarts, ready, requests, pages, age)


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"diffulex_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"diffulex_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"diffulex_{name}", help, buckets=buckets, registry=registry)

        self.ended = counter("requests", "Requests that ended, by precise reason or what became of them.", "reason")
        self.refused = counter("requests_refused", "Requests that were not served, by why.", "why")
        self.http = counter("http_requests", "HTTP requests, by route and status.", "route", "status")
        self.tokens = counter("tokens", "Tokens: prompt, cached, visible, written, edited, committed.", "kind")
        self.forwards = counter("forwards", "Forwards of requests (NFE): prefill, decode.", "kind")
        self.preemptions = counter("preemptions", "Times that requests lost their pages.")
        self.steps = counter("engine_steps", "Forwards of the engine.")
        self.rows = counter("engine_rows", "Rows that the engine fed.")
        self.running = gauge("requests_running", "Requests in the latest step.")
        self.waiting = gauge("requests_waiting", "Requests that wait for their turn.")
        self.pages = gauge("kv_pages", "Pages of the KV cache: used, free, and cached, which may be either.", "state")
        self.up = gauge("engine_up", "1 while the engine takes requests.")
        self.queue_time = histogram("queue_seconds", "From arrival to the first forward.", _SECONDS)
        self.ttft = histogram("time_to_first_token_seconds", "From arrival to the first token.", _SECONDS)
        self.tpot = histogram("time_per_token_seconds", "Time of each token after the first.", _STEP)
        self.e2e = histogram("request_seconds", "From arrival to the end.", _SECONDS)
        self.tpf = histogram("tokens_per_forward", "Visible tokens of a request per decode forward.", _TPF)
        self.step_time = histogram("engine_step_seconds", "Time of a forward of the engine.", _STEP)
        self.step_rows = histogram("engine_step_rows", "Rows of a forward of the engine.", _ROWS)
        self.stages = counter("engine_stage_seconds", "Time of the stages of forwards.", "stage")

    def watch(self, client: EngineClient) -> None:
        """Tell of these engines, too."""
        self._registry.register(EngineCollector(client))

    def note_load(self, load: Load) -> None:
        """Take in news of the engine."""
        running = min(load.requests, load.live)
        self.running.set(running)
        self.waiting.set(load.live - running)
        self.pages.labels("used").set(load.pages - load.free_pages)
        self.pages.labels("free").set(load.free_pages)
        self.pages.labels("cached").set(load.cached_pages)

    def note_step(self, load: Load) -> None:
        """Take in a step of the engine."""
        self.steps.inc()
        self.rows.inc(load.rows)
        self.step_time.observe(load.seconds)
        self.step_rows.observe(load.rows)
        for stage, seconds in load.stages.items():
            self.stages.labels(stage).inc(seconds)

    def note_end(self, ended: Ended) -> None:
        """Take in a request that ended."""
        self.ended.labels(ended.reason).inc()
        visible, decode = len(ended.token_ids), ended.nfe - ended.nfe_prefill
        for kind, count in (
            ("prompt", ended.prompt_tokens),
            ("cached", ended.cached_tokens),
            ("visible", visible),
            ("written", ended.tokens_written),
            ("edited", ended.tokens_edited),
            ("committed", ended.tokens_committed),
        ):
            self.tokens.labels(kind).inc(count)
        self.forwards.labels("prefill").inc(ended.nfe_prefill)
        self.forwards.labels("decode").inc(decode)
        self.preemptions.inc(ended.preemptions)
        self.e2e.observe(ended.e2e_time)
        for histogram, value in (
            (self.queue_time, ended.queue_time),
            (self.ttft, ended.ttft),
            (self.tpot, ended.tpot),
            (self.tpf, visible / decode if decode else None),
        ):
            if value is not None:
                histogram.observe(value)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)
