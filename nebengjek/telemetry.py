"""What is counted and measured (Prometheus), and where traces go (OpenTelemetry, only when an endpoint is set).

The bus calls ``Metrics`` several times per message, so those calls add to plain numbers in this process (one event
loop, no lock) and become Prometheus samples only when somebody scrapes.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import structs
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from nebengjek.bus.health import Health
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.observing import Spans
from nebengjek.bus.tracing import Trace
from nebengjek.errors import Misconfigured, Unavailable

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of handler seconds."""

MAX_EVENTS = 500
"""Of event types that are counted apart; there are as many as the code names, and a replayed stranger or two."""

COUNTERS = {
    "matches": ("Proposals by what became of them: offered, accepted, rejected.", ("outcome",)),
    "phones_cut_off": ("Phones that took nothing of what they were sent, and were closed with 4408.", ()),
    "sweep_failures": ("Rounds of a sweep that raised; the next round comes anyway.", ("sweep",)),
}
GAUGES = {
    "sockets": ("Phones connected to this pod.", ()),
    "users_connected": ("Users with at least one phone connected to this pod.", ()),
    "sockets_waiting": ("Phones that do not take what they are sent, for the moment.", ()),
    "frames_waiting": ("Frames that wait in this process for those phones.", ()),
    "greetings_waiting": ("Phones that have connected and are not greeted yet: many come at once.", ()),
    "rides": ("Rides that have not ended, by state.", ("state",)),
}

log = structlog.stdlib.get_logger("nebengjek.telemetry")


class Metrics(Collector):
    """The numbers of one pod, on a registry of its own; satisfies ``nebengjek.bus.observing.Observer``."""

    def __init__(self, registry: CollectorRegistry | None = None, *, pod_id: str = "") -> None:
        self.registry = registry = registry or CollectorRegistry()
        self._pod_id = pod_id
        # (stream, consumer, outcome); a settled consumer's stream is known from its deliveries, its event from health.
        self._messages: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._stream_of: dict[str, str] = {}
        self._published: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._publish_errors: defaultdict[str, int] = defaultdict(int)
        self._dead: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._seconds: dict[str, _Histogram] = {}
        self._health: Health | None = None
        self._pods: dict[str, int] = {}
        self._refreshers: list[Callable[[], Awaitable[None]]] = []
        self._made: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._counters = {
            name: Counter(f"nebengjek_{name}", text, labels, registry=registry)
            for name, (text, labels) in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(f"nebengjek_{name}", text, labels, registry=registry) for name, (text, labels) in GAUGES.items()
        }
        self._scrape_errors = Counter(
            "nebengjek_scrape_errors", "Sources that did not answer when the metrics were read.", registry=registry
        )
        registry.register(self)
        ProcessCollector(registry=registry)

    # -- the bus

    def published(self, stream: str, event_type: str, n: int = 1) -> None:
        key = (stream, event_type)
        if key not in self._published and len(self._published) >= MAX_EVENTS:
            key = (stream, "other")
        self._published[key] += n

    def publish_failed(self, code: str) -> None:
        self._publish_errors[code] += 1

    def delivered(self, stream: str, consumer: str, n: int, redelivered: int) -> None:
        self._stream_of[consumer] = stream
        self._messages[stream, consumer, "delivered"] += n
        if redelivered:
            self._messages[stream, consumer, "redelivered"] += redelivered

    def settled(self, consumer: str, outcome: str, n: int = 1) -> None:
        self._messages[self._stream_of.get(consumer, ""), consumer, outcome] += n

    def handled(self, consumer: str, seconds: float) -> None:
        histogram = self._seconds.get(consumer)
        if histogram is None:
            histogram = self._seconds[consumer] = _Histogram()
        histogram.counts[bisect_left(BUCKETS, seconds)] += 1
        histogram.total += seconds

    def dead_letter(self, consumer: str, reason: str) -> None:
        self._messages[self._stream_of.get(consumer, ""), consumer, "dead_lettered"] += 1
        self._dead[consumer, reason] += 1

    # -- everybody else

    def counter(self, name: str, **labels: str) -> Counter:
        """One of COUNTERS with these labels: ``counter("matches", outcome="offered").inc()``."""
        counter: Counter = self._child(self._counters[name], name, labels)
        return counter

    def gauge(self, name: str, **labels: str) -> Gauge:
        """One of GAUGES with these labels: ``gauge("sockets").set(3)``."""
        gauge: Gauge = self._child(self._gauges[name], name, labels)
        return gauge

    def _child(self, parent: Any, name: str, labels: dict[str, str]) -> Any:
        key = (name, tuple(labels.values()))
        child = self._made.get(key)
        if child is None:
            child = self._made[key] = parent.labels(**labels) if labels else parent
        return child

    # -- when somebody looks

    def before_scrape(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Await ``refresh`` before each scrape: it sets gauges. Unavailable is counted and logged, no more."""
        self._refreshers.append(refresh)

    def observe_health(self, health: Health) -> None:
        """Keep what the bus says of its consumers for the next scrape."""
        self._health = health

    def observe_pods(self, sockets: dict[str, int]) -> None:
        """Keep the connections of each pod that was heard lately for the next scrape."""
        self._pods = sockets

    async def render(self) -> bytes:
        """The text that Prometheus reads."""
        for refresh in self._refreshers:
            try:
                await refresh()
            except Unavailable as error:
                self._scrape_errors.inc()
                log.warning("metrics.incomplete", error=str(error))
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        if self._pod_id:
            info = GaugeMetricFamily("nebengjek_pod", "Always 1; names the pod.", labels=["pod_id"])
            info.add_metric([self._pod_id], 1)
            yield info
        messages = CounterMetricFamily(
            "nebengjek_messages",
            "Messages by outcome: published, delivered, redelivered, acked, naked, termed, dead_lettered.",
            labels=["stream", "event", "consumer", "outcome"],
        )
        for (stream, event), count in self._published.items():
            messages.add_metric([stream, event, "", "published"], count)
        events = {one.consumer: one.event for one in self._health.consumers} if self._health is not None else {}
        for (stream, consumer, outcome), count in self._messages.items():
            messages.add_metric([stream, events.get(consumer, ""), consumer, outcome], count)
        yield messages
        errors = CounterMetricFamily("nebengjek_publish_errors", "Publishes that failed.", labels=["code"])
        for code, count in self._publish_errors.items():
            errors.add_metric([code], count)
        yield errors
        dead = CounterMetricFamily("nebengjek_dead_letters", "Messages given up.", labels=["consumer", "reason"])
        for (consumer, reason), count in self._dead.items():
            dead.add_metric([consumer, reason], count)
        yield dead
        seconds = HistogramMetricFamily("nebengjek_handler_seconds", "Seconds in a handler.", labels=["consumer"])
        for consumer, histogram in self._seconds.items():
            seconds.add_metric([consumer], buckets=histogram.cumulative(), sum_value=histogram.total)
        yield seconds
        pods = GaugeMetricFamily("nebengjek_pod_sockets", "Phones connected to a pod, as it last said.", labels=["pod"])
        for pod_id, sockets in self._pods.items():
            pods.add_metric([pod_id], sockets)
        yield pods
        if self._health is not None:
            yield from _health_metrics(self._health)


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        buckets, so_far = [], 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        return buckets


_CONSUMER_GAUGES = {
    "lag": ("Messages not delivered yet.", "lag"),
    "ack_pending": ("Messages delivered and not settled.", "ack_pending"),
    "redelivered": ("Messages under way for the second time or more.", "redelivered"),
    "last_pull_age_seconds": ("Since the server last answered a pull.", "last_pull_age"),
    "moving": ("1 when attached, pulling and not held up.", "moving"),
    "lagging": ("1 when more than nats.lag_alarm messages are not delivered yet.", "lagging"),
}

_STREAM_GAUGES = {
    "messages": "Messages that it holds.",
    "bytes": "Bytes that it holds.",
    "max_bytes": "Bytes at which it drops the oldest; -1 = no limit.",
    "consumers": "Consumers that it has.",
}


def _health_metrics(health: Health) -> Iterator[Metric]:
    for name, (text, field) in _CONSUMER_GAUGES.items():
        gauge = GaugeMetricFamily(f"nebengjek_consumer_{name}", text, labels=["stream", "event", "consumer"])
        for consumer in health.consumers:
            labels = [consumer.stream, consumer.event, consumer.consumer]
            gauge.add_metric(labels, float(getattr(consumer, field)))
        yield gauge
    for name, text in _STREAM_GAUGES.items():
        gauge = GaugeMetricFamily(f"nebengjek_stream_{name}", text, labels=["stream", "storage"])
        for stream in health.streams:
            gauge.add_metric([stream.stream, stream.storage], float(getattr(stream, name)))
        yield gauge
    reconnects = CounterMetricFamily("nebengjek_bus_reconnects", "How often the connection came back.")
    reconnects.add_metric([], health.connection.reconnects)
    yield reconnects
    up = health.status is ConnectionStatus.UP and health.established
    yield GaugeMetricFamily("nebengjek_bus_up", "1 when connected and all consumers stand.", value=float(up))
    yield GaugeMetricFamily("nebengjek_outbox_backlog", "Events not published yet.", value=health.outbox_backlog)
    yield GaugeMetricFamily("nebengjek_dead_letters_kept", "Dead letters to look at.", value=health.dead_letters)
    yield GaugeMetricFamily("nebengjek_orphans", "Durables that no module wants.", value=len(health.orphans))
    breakers = GaugeMetricFamily("nebengjek_breaker_open", "1 when it holds calls up.", labels=["dependency"])
    for dependency, state in health.breakers.items():
        breakers.add_metric([dependency], float(state != "closed"))
    yield breakers


def metrics_route(metrics: Metrics) -> HTTPRouteHandler:
    """GET /metrics, for Prometheus; each process counts its own."""

    @get("/metrics", include_in_schema=False, opt={"public": True}, name="metrics")
    async def read_metrics() -> Response[bytes]:
        return Response(await metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    return read_metrics


# -- traces ------------------------------------------------------------------------------------------------


def setup_tracing(endpoint: str, *, service_name: str, pod_id: str) -> Spans:
    """Send spans to ``endpoint`` (OTLP over HTTP, ``/v1/traces`` is appended).

    Raises Misconfigured when the extra ``telemetry`` is not installed.
    """
    # The SDK costs a third of a second to import, so only those who want traces load it.
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise Misconfigured("telemetry.otlp_endpoint is set: expected pip install 'nebengjek[telemetry]'") from error
    resource = Resource.create({"service.name": service_name, "service.instance.id": pod_id})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    url = endpoint if endpoint.endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return _OtelSpans(provider)


class _OtelSpans:
    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("nebengjek")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.CONSUMER
        self._failed = StatusCode.ERROR

    @contextmanager
    def span(self, name: str, trace: Trace, **attributes: str | int) -> Iterator[Trace]:
        carrier = {"traceparent": trace.traceparent, "tracestate": trace.tracestate or ""}
        said: dict[str, str | int] = {"nebengjek.correlation_id": trace.correlation_id, **attributes}
        span = self._tracer.start_span(name, self._propagator.extract(carrier), self._kind, said)
        context = span.get_span_context()
        traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        try:
            yield structs.replace(trace, traceparent=traceparent)
        except BaseException as error:
            # Only its kind: a message may quote personal data.
            span.set_status(self._failed, type(error).__name__)
            raise
        finally:
            span.end()

    def close(self) -> None:
        self._provider.shutdown()
