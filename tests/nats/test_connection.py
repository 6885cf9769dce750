"""The connection to a real nats-server breaks and returns: what health and logs say, and that nothing is lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import pstdev
from typing import Any, ClassVar

import pytest
from structlog.testing import capture_logs

from nebengjek.app import App
from nebengjek.bus import tables
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.messages import PubAck
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import StreamSpec
from nebengjek.clock import SystemClock
from nebengjek.contracts.message import Event
from nebengjek.contracts.users import UserSessionEnded
from nebengjek.database import Database, metadata
from nebengjek.module import on
from nebengjek.settings import load
from nebengjek.streams import STREAMS
from tests.lateness import at_most
from tests.servers import NatsServer, nats_server

pytestmark = pytest.mark.real

DEAD = next(spec for spec in STREAMS if spec.name == "DEAD_LETTER_STREAM")
AUDIT = StreamSpec(name="AUDIT", subjects=("audit.>",))


class Noted(Event, frozen=True, kw_only=True, tag="audit.note"):
    entity: str = "x"
    n: int
    key: ClassVar[str] = "entity"
    number: ClassVar[str | None] = "n"


class Ear:
    """Hears events and lets wait for them."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.moments: list[float] = []
        self._came = asyncio.Event()

    async def __call__(self, event: Noted) -> None:
        self.heard.append(event.n)
        self.moments.append(time.monotonic())
        self._came.set()

    async def hears(self, *numbers: int) -> None:
        async with asyncio.timeout(20):
            while not {*numbers} <= {*self.heard}:
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def bus_at(url: str, path: Path, *, hears: Sequence[Any] = (), **options: Any) -> AsyncIterator[MessageBus]:
    database = Database(f"sqlite:///{path}/bus.sqlite3")
    async with database.begin() as tx:
        mine = [tables.outbox, tables.outbox_lease, tables.inbox, tables.dead_letters]
        await tx.run_sync(lambda connection: metadata.create_all(connection, tables=mine))
    broker = JetStreamBroker(url, name="pod-1", **options)
    bus = MessageBus(broker, [AUDIT, DEAD], database.begin, pod_id="pod-1", clock=SystemClock())
    bus.wire("m", hears, [], [])
    try:
        await bus.start()
        yield bus
    finally:
        await bus.drain(1.0)
        await database.close()


async def until(bus: MessageBus, status: ConnectionStatus) -> None:
    """Return when the connection is so."""
    changed = asyncio.Event()
    bus.broker.on_status(lambda _: changed.set())
    async with asyncio.timeout(20):
        while bus.broker.status is not status:
            await changed.wait()
            changed.clear()


async def stop(server: NatsServer, bus: MessageBus) -> None:
    await asyncio.to_thread(server.stop)
    await until(bus, ConnectionStatus.DOWN)


async def test_loops_go_on_within_two_seconds_of_the_servers_return(tmp_path: Path) -> None:
    """With the settings as they are: wherever between two tries the server returns."""
    ear = Ear()
    with nats_server() as server:
        async with bus_at(server.url, tmp_path, hears=[on(Noted, ear)]) as bus:
            for n, away in enumerate((0.0, 1.3)):
                await stop(server, bus)
                await asyncio.sleep(away)
                await asyncio.to_thread(server.start)
                async with at_most(2.0):
                    assert isinstance(await bus.publish(Noted(n=n)), PubAck)
                    await ear.hears(n)
            assert ear.heard == [0, 1]


async def test_a_publish_while_the_server_is_away_waits_and_is_stored_once(tmp_path: Path) -> None:
    ear = Ear()
    with nats_server() as server:
        async with bus_at(server.url, tmp_path, hears=[on(Noted, ear)], reconnect_wait=0.5) as bus:
            # Some under way when it stops, some said while it is away.
            said = [asyncio.create_task(bus.publish(Noted(n=n))) for n in range(20)]
            await asyncio.sleep(0)
            await stop(server, bus)
            said += [asyncio.create_task(bus.publish(Noted(n=n))) for n in range(15, 40)]
            # Longer than the quick tries last: only who waits for the connection is still there.
            await asyncio.sleep(2.5)
            await asyncio.to_thread(server.start)
            acks = await asyncio.gather(*said)
            assert {ack.stream for ack in acks} == {"AUDIT"}
            # The same id twice, whether the first try was stored or not: one message.
            assert (await bus.broker.stream_info("AUDIT")).messages == 40
            await ear.hears(*range(40))
            assert sorted(set(ear.heard)) == list(range(40))


async def test_health_and_logs_tell_of_the_connection(tmp_path: Path) -> None:
    with nats_server() as server, capture_logs() as lines:
        async with bus_at(server.url, tmp_path, reconnect_wait=0.2) as bus:
            health = await bus.health()
            assert (health.ready, health.problem, health.connection.reconnects) == (True, None, 0)
            assert health.connection.sent > 5
            assert health.connection.received > 5
            await stop(server, bus)
            health = await bus.health()
            assert (health.ready, health.connection.status) == (False, ConnectionStatus.DOWN)
            assert health.problem is not None
            assert health.problem.startswith("down for ")
            await asyncio.to_thread(server.start)
            await until(bus, ConnectionStatus.UP)
            after = (await bus.health()).connection
            assert (after.reconnects, after.error, after.where) == (1, None, server.url)
            assert after.received > health.connection.received
    told = [line for line in lines if line["event"] in ("nats.connected", "nats.disconnected")]
    assert [(line["event"], line["log_level"]) for line in told] == [
        ("nats.connected", "info"),
        ("nats.disconnected", "warning"),
        ("nats.connected", "info"),
    ]
    assert told[2]["away"] > 0
    assert {line["where"] for line in told} == {server.url}


async def test_it_is_tried_again_for_ever_and_never_at_one_moment() -> None:
    """Tries are between a half and the whole of the wait apart, by chance."""
    moments: list[float] = []
    enough = asyncio.Event()

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        moments.append(time.monotonic())
        writer.close()
        if len(moments) == 20:
            enough.set()

    listening = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    wait = 0.1
    broker = JetStreamBroker(f"nats://127.0.0.1:{port}", name="t", reconnect_wait=wait, connect_timeout=0.2)
    await broker.connect()
    await asyncio.wait_for(enough.wait(), 20)
    await broker.close()
    listening.close()
    await listening.wait_closed()
    gaps = [after - before for before, after in pairwise(moments)]
    assert min(gaps) >= wait / 2
    assert pstdev(gaps) > 0.005
    # Somebody else may have had the machine for a while, but not each time.
    assert min(gaps) < wait


async def test_the_drain_ends_in_its_time_with_the_server_away(tmp_path: Path) -> None:
    env = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3",
        "NEBENGJEK__NATS__DRAIN_TIMEOUT": "1",
        "NEBENGJEK__NATS__CONNECT_TIMEOUT": "1",
    }
    with nats_server() as server:
        app = App(load(env={**env, "NATS_URL": server.url}))
        await app.start()
        await stop(server, app.bus)
        began = time.monotonic()
        await app.stop()
        assert time.monotonic() - began < 1.0 + 20.0
        assert app.drained is not None
        assert app.drained.abandoned == 0


async def test_a_stuck_handler_is_given_up_after_the_drain_timeout(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def stuck(_: Noted) -> None:
        begun.set()
        await asyncio.Event().wait()

    ear = Ear()
    with nats_server() as server:
        async with bus_at(server.url, tmp_path, hears=[on(Noted, stuck)]) as bus:
            await bus.publish(Noted(n=1))
            await asyncio.wait_for(begun.wait(), 10)
            began = time.monotonic()
            report = await bus.drain(1.0)
            assert 1.0 <= time.monotonic() - began < 20.0
            assert (report.finished, report.abandoned) == (0, 1)
        # Whoever comes next gets it at once.
        async with bus_at(server.url, tmp_path, hears=[on(Noted, ear)]):
            await ear.hears(1)


async def test_jetstream_behind_a_leaf_node(tmp_path: Path) -> None:
    """We are connected to a leaf node with a JetStream of its own; JETSTREAM_DOMAIN says that ours is the hub's."""
    async with AsyncExitStack() as stack:
        hub = stack.enter_context(
            nats_server(access="", domain="hub", config="leafnodes { listen: '127.0.0.1:-1' }"),
        )
        port = hub.log_text().partition("Listening for leafnode connections on 127.0.0.1:")[2].split()[0]
        remote = f"leafnodes {{ remotes: [ {{ url: 'nats-leaf://127.0.0.1:{port}' }} ] }}"
        leaf = stack.enter_context(nats_server(access="", domain="leaf", config=remote))
        env = {"DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3", "JETSTREAM_DOMAIN": "hub", "NATS_URL": leaf.url}
        app = App(load(env=env), sweeping=False)
        stack.push_async_callback(app.stop)
        await app.start()
        # Where the leaf is connected only later, the streams are made behind.
        assert (await app.bus.publish(UserSessionEnded(user_id="u", session_id="s"))).stream == "USER_STREAM"
        assert (await app.examine()).status == "up"
        for url, names in ((hub.url, {spec.name for spec in STREAMS}), (leaf.url, set())):
            broker = JetStreamBroker(url, name="t")
            await broker.connect()
            assert {info.spec.name for info in await broker.streams()} == names
            await broker.close()
