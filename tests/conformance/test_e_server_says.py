"""What both brokers refuse before a server is asked, a server would refuse with the same code: nothing is made up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from nebengjek.bus.checks import check_consumer, check_stream
from nebengjek.bus.errors import ApiError
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.jetstream.wire import consumer_config, stream_config
from nebengjek.bus.specs import ConsumerSpec, Deliver, Discard, Push, StreamSpec
from tests.conformance.harness import NatsHarness, stream
from tests.servers import NatsServer

pytestmark = pytest.mark.real

CONSUMERS: list[dict[str, Any]] = [
    {"filters": ("s.*", "s.a")},
    {"filters": ("s.a", "")},
    {"deliver": Deliver.BY_SEQ},
    {"start_seq": 3},
    {"deliver": Deliver.NEW, "start_time": datetime(2030, 1, 1, tzinfo=UTC)},
    {"deliver": Deliver.BY_TIME},
    {"deliver": Deliver.LAST_PER_SUBJECT},
    {"backoff": (1.0, 2.0, 3.0), "max_deliver": 2},
    {"backoff": (1.0, -2.0), "max_deliver": 2},
    {"ack_wait": -1.0},
    {"max_expires": 0.0001},
    {"push": Push(subject="deliver.*")},
    {"push": Push(subject="deliver..c")},
    {"push": Push(subject="deliver.c", heartbeat=0.05)},
    {"push": Push(subject="deliver.c", flow_control=True)},
]
STREAMS: list[dict[str, Any]] = [
    {"subjects": ("t.*", "t.a")},
    {"subjects": (">",)},
    {"subjects": ("$JS.API.x",)},
    {"subjects": ("$SYS.x",)},
    {"max_age": 0.05, "duplicate_window": 0.05},
    {"max_age": -1.0},
    {"duplicate_window": 0.05},
    {"duplicate_window": -1.0},
    {"max_age": 10.0, "duplicate_window": 11.0},
    {"discard_new_per_subject": True},
    {"discard_new_per_subject": True, "discard": Discard.NEW},
]


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[JetStreamBroker]:
    async with NatsHarness(server) as harness:
        broker = await harness.make_broker()
        assert isinstance(broker, JetStreamBroker)
        await stream(broker)
        yield broker


@pytest.mark.parametrize("options", CONSUMERS, ids=str)
async def test_of_a_consumer(conformance_nats: NatsServer, options: dict[str, Any]) -> None:
    spec = ConsumerSpec(name="c", **options)
    with pytest.raises(ApiError) as ours:
        check_consumer(spec)
    async with connected(conformance_nats) as broker:
        body = {"stream_name": "S", "config": consumer_config(spec), "action": "create"}
        with pytest.raises(ApiError) as theirs:
            await broker._call("CONSUMER.CREATE.S.c", body)
    assert ours.value.code == theirs.value.code


@pytest.mark.parametrize("options", STREAMS, ids=str)
async def test_of_a_stream(conformance_nats: NatsServer, options: dict[str, Any]) -> None:
    spec = StreamSpec(**{"name": "T", "subjects": ("t.>",), **options})
    with pytest.raises(ApiError) as ours:
        check_stream(spec)
    async with connected(conformance_nats) as broker:
        with pytest.raises(ApiError) as theirs:
            await broker._call("STREAM.CREATE.T", stream_config(spec))
    assert ours.value.code == theirs.value.code
