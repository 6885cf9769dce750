"""What pods say of themselves: by heartbeat, when asked, and to operators; who is silent is not listed any more."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner

from nebengjek.cli import cli
from nebengjek.clock import ManualClock
from nebengjek.contracts.pods import HEARTBEAT, health_subject
from nebengjek.settings import DEVELOPMENT_ADMIN_KEY
from tests.flows.conftest import Backend, Embedded
from tests.flows.world import WAIT, World
from tests.test_pods import Street, all_heard

FIELDS = {"pod_id", "timestamp", "active_connections", "memory_usage_mb", "cpu_usage_percent", "modules", "embedded"}


async def test_a_heartbeat_says_where_how_many_and_at_what_cost(backend: Backend) -> None:
    async with backend.own_world() as world:
        await world.passenger()
        await world.driver()
        beats: asyncio.Queue[Any] = asyncio.Queue()

        async def hear(message: Any) -> None:
            beats.put_nowait(msgspec.json.decode(message.data))

        await world.app.broker.subscribe(HEARTBEAT, hear)
        await world.app.pods.beat()
        beat = await asyncio.wait_for(beats.get(), WAIT)
        reply = await world.app.broker.request(health_subject(world.app.pod_id), b"", timeout=WAIT)
        for said in (beat, msgspec.json.decode(reply.data)):
            assert said.keys() == FIELDS
            assert (said["pod_id"], said["active_connections"]) == (world.app.pod_id, 2)
            assert said["modules"] == ["users", "location", "match", "rides"]
            assert 20 < said["memory_usage_mb"] < 4000
            assert said["cpu_usage_percent"] >= 0
        detailed = (await world.http.get("/health/detailed")).json()
        assert detailed["details"]["pods"] == {world.app.pod_id: 2}
        text = (await world.http.get("/metrics")).text
        assert f'nebengjek_pod_sockets{{pod="{world.app.pod_id}"}} 2.0' in text
        assert "nebengjek_users_connected 2.0" in text
        assert "nebengjek_sockets_waiting 0.0" in text


async def test_who_is_silent_for_ten_seconds_is_not_listed(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(street.pod("one", ["match"]))
        async with street.pod("two", ["rides"]) as two:
            await all_heard(one, two)
            assert [beat.pod_id for beat in one.known()] == ["one", "two"]
            street.clock.advance(9)
            assert len(one.known()) == 2
        street.clock.advance(1.1)
        assert [beat.pod_id for beat in one.known()] == ["one"]


async def test_a_pod_whose_clock_is_wrong_is_listed_all_the_same(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", ["match"]) as one:
        late = Street(tmp_path)
        late.server, late.clock = street.server, ManualClock(street.clock.now().replace(year=2020))
        async with late.pod("two", ["rides"]) as two:
            await all_heard(one, two)
            assert [beat.pod_id for beat in two.known()] == ["two", "one"]


async def test_the_command_shows_them_as_a_table(embedded: Embedded) -> None:
    async with embedded.own_world() as world:
        await world.passenger()
        table = await ask(world, "pods")
        for word in (world.app.pod_id, "users, location, match, rides", "phones", "memory MB", "cpu %"):
            assert word in table
        (row,) = msgspec.json.decode(await ask(world, "pods", "--json"))
        assert row["active_connections"] == 1


async def ask(world: World, *words: str) -> str:
    arguments = [*words, "--url", world.url, "--api-key", DEVELOPMENT_ADMIN_KEY]
    env = {"COLUMNS": "200"}
    result = await asyncio.to_thread(CliRunner().invoke, cli, arguments, env=env)
    assert result.exit_code == 0, result.output
    return result.output


async def test_while_the_bus_is_away_a_beat_is_lost_and_the_next_one_is_heard(tmp_path: Path) -> None:
    street = Street(tmp_path)
    async with street.pod("one", ["match"]) as one, street.pod("two", ["rides"]) as two:
        street.server.stop()
        await one.beat()
        assert [beat.pod_id for beat in one.known()] == ["one"]
        street.server.start()
        await all_heard(one, two)
