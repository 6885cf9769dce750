"""What Prometheus reads, what it costs to count, and spans that carry the bus's own trace."""

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from litestar import Litestar
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from nebengjek.bus.health import ConsumerHealth, Health, StreamHealth
from nebengjek.bus.interface import Connection, ConnectionStatus
from nebengjek.bus.observing import Observer
from nebengjek.bus.tracing import new_trace
from nebengjek.errors import Misconfigured, Unavailable
from nebengjek.telemetry import MAX_EVENTS, Metrics, metrics_route, setup_tracing


async def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await metrics.render()).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


PICKUPS = ConsumerHealth(
    stream="RIDE_STREAM",
    consumer="ride_pickup_match",
    event="ride.pickup",
    lag=7,
    ack_pending=3,
    redelivered=2,
    last_pull_age=1.5,
    running=0,
    blocked_by=None,
    moving=True,
    lagging=True,
)


def health_of(*consumers: ConsumerHealth) -> Health:
    return Health(
        status=ConnectionStatus.UP,
        where="in this process",
        connection=Connection(status=ConnectionStatus.UP, where="in this process", reconnects=3),
        established=True,
        consumers=list(consumers),
        breakers={"database": "open", "redis": "closed"},
        outbox_backlog=5,
        dead_letters=6,
        orphans=["RIDE_STREAM/old"],
        streams=[
            StreamHealth(stream="RIDE_STREAM", storage="file", messages=4, bytes=500, max_bytes=1000, consumers=2)
        ],
    )


async def test_a_thousand_kinds_of_events_are_not_a_thousand_series() -> None:
    """Subjects that are no events of ours may be replayed."""
    metrics = Metrics(CollectorRegistry())
    for n in range(2 * MAX_EVENTS):
        metrics.published("RIDE_STREAM", f"ride.x{n}")
    found = {name: value for name, value in (await samples(metrics)).items() if name[0] == "nebengjek_messages_total"}
    assert len(found) == MAX_EVENTS + 1
    others = key("nebengjek_messages_total", stream="RIDE_STREAM", event="other", consumer="", outcome="published")
    assert found[others] == MAX_EVENTS


async def test_messages_are_counted_by_stream_and_outcome() -> None:
    metrics = Metrics(CollectorRegistry())
    observer: Observer = metrics
    observer.published("RIDE_STREAM", "ride.pickup")
    observer.published("RIDE_STREAM", "ride.pickup", 2)
    observer.published("RIDE_STREAM", "ride.started")
    observer.publish_failed("10077")
    observer.delivered("RIDE_STREAM", "ride_pickup_match", 4, 1)
    for outcome in ("acked", "acked", "naked", "termed"):
        observer.settled("ride_pickup_match", outcome)
    observer.dead_letter("ride_pickup_match", "failed")
    metrics.observe_health(health_of(PICKUPS))
    found = await samples(metrics)

    def messages(outcome: str, consumer: str = "ride_pickup_match", event: str = "ride.pickup") -> float:
        labels = {"stream": "RIDE_STREAM", "event": event, "consumer": consumer}
        return found[key("nebengjek_messages_total", **labels, outcome=outcome)]

    assert messages("published", "") == 3
    assert messages("published", "", "ride.started") == 1
    assert [messages(outcome) for outcome in ("delivered", "redelivered", "acked", "naked", "termed")] == [
        4,
        1,
        2,
        1,
        1,
    ]
    assert messages("dead_lettered") == 1
    assert found[key("nebengjek_publish_errors_total", code="10077")] == 1
    assert found[key("nebengjek_dead_letters_total", consumer="ride_pickup_match", reason="failed")] == 1


async def test_handler_seconds_are_a_histogram() -> None:
    metrics = Metrics(CollectorRegistry())
    for seconds in (0.0001, 0.001, 0.3, 100.0):
        metrics.handled("c", seconds)
    found = await samples(metrics)
    assert found[key("nebengjek_handler_seconds_count", consumer="c")] == 4
    assert found[key("nebengjek_handler_seconds_sum", consumer="c")] == pytest.approx(100.3011)
    # A bound is inclusive, as Prometheus has it.
    expected = {"0.0005": 1, "0.001": 2, "0.25": 2, "0.5": 3, "30.0": 3, "+Inf": 4}
    for bound, count in expected.items():
        assert found[key("nebengjek_handler_seconds_bucket", consumer="c", le=bound)] == count


async def test_the_health_of_the_bus_becomes_gauges() -> None:
    metrics = Metrics(CollectorRegistry(), pod_id="pod-1")
    metrics.observe_health(health_of(PICKUPS))
    found = await samples(metrics)
    for name, value in {
        "lag": 7,
        "ack_pending": 3,
        "redelivered": 2,
        "last_pull_age_seconds": 1.5,
        "moving": 1,
        "lagging": 1,
    }.items():
        labels = {"stream": "RIDE_STREAM", "event": "ride.pickup", "consumer": "ride_pickup_match"}
        assert found[key(f"nebengjek_consumer_{name}", **labels)] == value
    for name, value in {"messages": 4, "bytes": 500, "max_bytes": 1000, "consumers": 2}.items():
        assert found[key(f"nebengjek_stream_{name}", stream="RIDE_STREAM", storage="file")] == value
    assert found[key("nebengjek_bus_reconnects_total")] == 3
    assert found[key("nebengjek_bus_up")] == 1
    assert found[key("nebengjek_outbox_backlog")] == 5
    assert found[key("nebengjek_dead_letters_kept")] == 6
    assert found[key("nebengjek_orphans")] == 1
    assert found[key("nebengjek_breaker_open", dependency="database")] == 1
    assert found[key("nebengjek_breaker_open", dependency="redis")] == 0
    assert found[key("nebengjek_pod", pod_id="pod-1")] == 1


async def test_gauges_are_refreshed_when_somebody_looks() -> None:
    metrics = Metrics()

    async def refresh() -> None:
        metrics.gauge("sockets").inc()
        metrics.gauge("rides", state="ONGOING").set(3)

    async def away() -> None:
        raise Unavailable("database")

    metrics.before_scrape(away)
    metrics.before_scrape(refresh)
    metrics.counter("matches", outcome="offered").inc()
    metrics.counter("sweep_failures", sweep="match").inc()
    await samples(metrics)
    found = await samples(metrics)
    assert found[key("nebengjek_sockets")] == 2
    assert found[key("nebengjek_rides", state="ONGOING")] == 3
    assert found[key("nebengjek_matches_total", outcome="offered")] == 1
    assert found[key("nebengjek_sweep_failures_total", sweep="match")] == 1
    assert found[key("nebengjek_scrape_errors_total")] == 2


async def test_two_pods_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.published("S", "a.b")
    label = key("nebengjek_messages_total", stream="S", event="a.b", consumer="", outcome="published")
    assert label in await samples(one)
    assert label not in await samples(other)


async def test_the_route_speaks_prometheus() -> None:
    metrics = Metrics()
    metrics.published("S", "a.b")
    app: Any = Litestar([metrics_route(metrics)])
    async with AsyncClient(transport=ASGITransport(app), base_url="http://pod") as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'nebengjek_messages_total{consumer="",event="a.b",outcome="published",stream="S"} 1.0' in answer.text
    assert "process_resident_memory_bytes" in answer.text


def test_counting_costs_less_than_a_microsecond() -> None:
    metrics = Metrics()

    def once(rounds: int) -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            metrics.published("S", "a.b")
            metrics.delivered("S", "c", 1, 0)
            metrics.handled("c", 0.004)
            metrics.settled("c", "acked")
        return (time.perf_counter() - started) / rounds / 4

    # The best of several rounds: what it costs, not what else the machine does.
    assert min(once(2000) for _ in range(20)) < 1e-6


# -- traces


class Collector(HTTPServer):
    """An OTLP endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans: list[Any] = []
        self.resources: list[Any] = []


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            raise AssertionError("not expected here")
        request = ExportTraceServiceRequest.FromString(body)
        assert self.path == "/v1/traces"
        for resource in request.resource_spans:
            self.server.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_continue_the_trace_of_the_bus_and_reach_the_endpoint(collector: Collector) -> None:
    spans = setup_tracing(f"http://127.0.0.1:{collector.server_port}", service_name="nebengjek", pod_id="pod-1")
    trace = new_trace()
    with spans.span("handle ride.pickup", trace, consumer="ride_pickup_match") as inside:
        assert inside.correlation_id == trace.correlation_id
        with spans.span("publish ride.started", inside) as innermost:
            assert innermost.traceparent[3:35] == trace.traceparent[3:35]
    with pytest.raises(ValueError, match="private"), spans.span("fails", trace):
        raise ValueError("private")
    spans.close()
    inner, outer, failed = collector.spans
    assert (outer.name, inner.name, failed.name) == ("handle ride.pickup", "publish ride.started", "fails")
    assert outer.trace_id.hex() == inner.trace_id.hex() == trace.traceparent[3:35]
    assert outer.parent_span_id.hex() == trace.traceparent[36:52]
    assert inner.parent_span_id == outer.span_id
    assert outer.span_id.hex() == inside.traceparent[36:52]
    attributes = {item.key: item.value.string_value for item in outer.attributes}
    assert attributes == {"nebengjek.correlation_id": trace.correlation_id, "consumer": "ride_pickup_match"}
    assert failed.status.code == 2
    assert b"private" not in failed.SerializeToString()
    named = {item.key: item.value.string_value for item in collector.resources[0].attributes}
    assert (named["service.name"], named["service.instance.id"]) == ("nebengjek", "pod-1")


def test_without_the_extra_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Misconfigured, match=r"nebengjek\[telemetry\]"):
        setup_tracing("http://127.0.0.1:1", service_name="x", pod_id="y")
