"""What only a real server has: people it does not know, domains, other addresses."""

import asyncio
from typing import Any

import pytest

from nebengjek.bus.errors import ApiError, Disconnected
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.jetstream.client import ReadingClient
from nebengjek.bus.messages import PubAck
from nebengjek.bus.specs import ConsumerSpec, StreamSpec
from nebengjek.errors import Misconfigured
from tests.conformance.harness import Relay
from tests.servers import NatsServer, nats_server

pytestmark = pytest.mark.real


async def works(broker: JetStreamBroker) -> None:
    """Store, deliver, ack: each of them once."""
    await broker.connect()
    await asyncio.wait_for(broker.wait_connected(), 5)
    await broker.ensure_stream(StreamSpec(name="S", subjects=("s.>",)))
    await broker.ensure_consumer("S", ConsumerSpec(name="c"))
    assert await broker.submit("s.a", b"x", {}) == PubAck("S", 1)
    (message,) = (await broker.pull("S", "c", no_wait=True)).messages
    assert (message.stream, message.consumer, message.seq, message.consumer_seq) == ("S", "c", 1, 1)
    assert (message.deliveries, message.pending) == (1, 0)
    stored = await broker.get_message("S", 1)
    assert abs((message.time - stored.time).total_seconds()) < 0.001
    await message.ack_sync()
    assert (await broker.consumer_info("S", "c")).ack_floor.stream == 1
    source = await broker.consume("S", "c", prefetch=4)
    await broker.submit("s.b", b"y", {})
    (message,) = (await asyncio.wait_for(source.next(4), 5)).messages
    await message.ack_sync()
    await broker.close()


async def test_a_user_with_a_password() -> None:
    with nats_server(user="pod", password="secret-word") as server:
        for user, password in (("pod", "wrong"), ("nobody", "secret-word")):
            stranger = JetStreamBroker(server.url, name="t", user=user, password=password, reconnect_wait=0.01)
            await asyncio.wait_for(stranger.connect(), 5)
            assert stranger.status is ConnectionStatus.CONNECTING
            await stranger.close()
        await works(JetStreamBroker(server.url, name="t", user="pod", password="secret-word"))
        in_the_address = JetStreamBroker(server.url.replace("//", "//pod:secret-word@"), name="t")
        await in_the_address.connect()
        assert in_the_address.status is ConnectionStatus.UP
        assert in_the_address.where == server.url
        await in_the_address.close()


async def test_a_domain() -> None:
    with nats_server(domain="hub") as server:
        await works(JetStreamBroker(server.url, name="t", domain="hub"))


async def test_several_servers_one_of_them_away() -> None:
    with nats_server() as server:
        broker = JetStreamBroker(f"nats://127.0.0.1:1, {server.url}", name="t", reconnect_wait=0.01)
        await works(broker)


async def test_an_address_that_is_none() -> None:
    with pytest.raises(Misconfigured):
        JetStreamBroker("nats://", name="t")


async def test_a_reader_that_fails_is_replaced_with_its_connection(
    conformance_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever nobody thought of: the connection is up, and nobody would read from it."""
    broker = JetStreamBroker(conformance_nats.fresh_account(), name="reader", reconnect_wait=0.05)
    await broker.connect()
    failures = [RuntimeError("what nobody thought of")]
    build = ReadingClient._build_message

    def fail(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return build(*given)

    monkeypatch.setattr(ReadingClient, "_build_message", fail)
    with pytest.raises(Disconnected):
        await broker.stream_info("S")
    await asyncio.wait_for(broker.wait_connected(), 5)
    with pytest.raises(ApiError):
        await broker.stream_info("S")
    assert broker.connection().reconnects == 1
    await broker.close()


async def test_a_client_closes_with_something_unsent_on_a_broken_line(conformance_nats: NatsServer) -> None:
    """The rest would stay open, and the error would hide how a drain ended."""
    relay = Relay(conformance_nats.port)
    await relay.open()
    client = ReadingClient(tls_only=False)
    broken, closed = asyncio.Event(), asyncio.Event()

    async def on_disconnect() -> None:
        broken.set()

    async def on_close() -> None:
        closed.set()

    url = conformance_nats.fresh_account().replace(str(conformance_nats.port), str(relay.port))
    await client.connect(url, disconnected_cb=on_disconnect, closed_cb=on_close)
    await relay.close()
    await asyncio.wait_for(broken.wait(), 5)
    await client.publish("s.a", b"x")
    await client.close()
    assert (client.is_closed, closed.is_set()) == (True, True)
