"""Each module as a NATS user of its own: what it needs is permitted, and what is another's is refused, in words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from nebengjek.app import App
from nebengjek.bus.errors import NoResponders, NotPermitted
from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.messages import CoreMessage
from nebengjek.cli import MODULES, cli
from nebengjek.clock import ManualClock
from nebengjek.contracts.location import LatestLocations
from nebengjek.contracts.match import AcceptMatch, MatchUnavailable
from nebengjek.contracts.message import uuid7
from nebengjek.permissions import EVERYTHING, OPERATOR, authorization, users
from nebengjek.settings import Settings
from tests.flows.world import Phone, World, settings_for
from tests.plugins.streams import reading
from tests.servers import PostgresServer, nats_server, valkey_server

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "settings" / "nats-permissions.conf"
PLUGINS = tuple(f"nebengjek_plugins.{name}:{name}" for name in ("chat", "profiles", "notifications"))
WITH_PLUGINS = {module.name: module for module in App(Settings(plugins=PLUGINS)).modules}
USERS = {user.name: user for user in users(list(WITH_PLUGINS.values()))} | {
    user.name: user for user in users(App(Settings()).modules)
}
PASSWORDS = {user.password_variable: f"pw-{name}" for name, user in USERS.items()}


def test_the_shipped_file_is_what_the_code_says(tmp_path: Path) -> None:
    run = CliRunner()
    assert run.invoke(cli, ["nats-permissions", "--check", str(SHIPPED)]).exit_code == 0
    assert run.invoke(cli, ["nats-permissions"]).output == SHIPPED.read_text(encoding="utf-8")
    other = tmp_path / "nats.conf"
    other.write_text("authorization {}")
    stale = run.invoke(cli, ["nats-permissions", "--check", str(other)])
    assert (stale.exit_code, "nats-permissions --write" in stale.output) == (1, True)
    assert run.invoke(cli, ["nats-permissions", "--write", str(other)]).exit_code == 0
    assert other.read_text() == SHIPPED.read_text(encoding="utf-8")
    assert "include ./nats-permissions.conf" in (ROOT / "settings" / "nats-server.conf").read_text(encoding="utf-8")


def test_no_two_modules_may_say_pull_settle_or_answer_the_same() -> None:
    own = ("$JS.ACK.", "$JS.API.CONSUMER.MSG.NEXT.", "dead_letter.")
    said = [s for name in MODULES for s in USERS[name].publish if s.startswith(own) or not s.startswith(("$JS", "rpc"))]
    said = [s for s in said if not s.startswith(("pod.", "outbox."))]
    assert len(said) == len(set(said))
    heard = [s for name in MODULES for s in USERS[name].subscribe if s.startswith(("rpc.", "$JS.EVENT.", "_INBOX."))]
    assert len(heard) == len(set(heard))
    for name in MODULES:
        # No wildcard but for the last tokens of what is its own; what it deletes is what it read dead letters with.
        assert all(">" not in s or s.startswith(("$JS.ACK.", "$JS.FC.DEAD")) for s in USERS[name].publish)
        changes = [s for s in USERS[name].publish if any(verb in s for verb in (".DELETE", ".PURGE", ".PAUSE"))]
        assert changes == ["$JS.API.CONSUMER.DELETE.DEAD_LETTER_STREAM.*"]


def test_a_domain_is_permitted_too() -> None:
    (match,) = [user for user in users(App(Settings()).modules, domain="hub") if user.name == "match"]
    assert "$JS.hub.API.CONSUMER.MSG.NEXT.RIDE_STREAM.ride_pickup_match" in match.publish
    assert "$JS.ACK.*.*.RIDE_STREAM.ride_pickup_match.>" in match.publish


# -- on a real server


@dataclass
class Place:
    """A nats-server with the shipped users, Valkey and PostgreSQL."""

    nats_url: str
    redis_url: str
    postgres: PostgresServer
    clock: ManualClock
    database_url: str = ""

    def pod(self, name: str, *modules: str, user: str | None = None, plugins: Sequence[str] = ()) -> App:
        user = user or name
        settings = settings_for(
            self.database_url,
            nats__url=self.nats_url,
            nats__user=user,
            nats__password=PASSWORDS[USERS[user].password_variable],
            nats__client_id=f"pod-{name.replace('_', '-')}",
            redis__url=self.redis_url,
            plugins=plugins,
        )
        return App(settings, clock=self.clock, running=list(modules), sweeping=False)


@pytest.fixture(scope="module")
def servers(postgres: PostgresServer) -> Iterator[Place]:
    with ExitStack() as stack:
        # And one who may everything, to play the server and strangers.
        access = SHIPPED.read_text(encoding="utf-8").replace("users: [", "users: [ { user: root, password: root }", 1)
        nats = stack.enter_context(nats_server(access=access, env=PASSWORDS))
        redis_url = stack.enter_context(valkey_server())
        yield Place(nats.url, redis_url, postgres, ManualClock())


@pytest.fixture
def plugged(servers: Place) -> Iterator[Place]:
    """The same with the users that are written where the settings name plugins."""
    named = users(list(WITH_PLUGINS.values()))
    with nats_server(access=authorization(named), env=PASSWORDS) as nats:
        yield replace(servers, nats_url=nats.url, database_url=servers.postgres.new_database())


@pytest.fixture
def place(servers: Place) -> Place:
    servers.database_url = servers.postgres.new_database()
    return servers


@asynccontextmanager
async def started(app: App) -> AsyncIterator[App]:
    try:
        await asyncio.wait_for(app.start(), 30)
        yield app
    finally:
        await app.stop()


@pytest.mark.real
async def test_a_ride_over_four_pods_each_as_its_own_user(place: Place) -> None:
    with capture_logs() as lines:
        async with AsyncExitStack() as stack:
            others = [await stack.enter_async_context(started(place.pod(name, name))) for name in MODULES[1:]]
            # The world's application is the pod that phones reach.
            world = World(lambda clock: place.pod("users", "users"), place.clock)
            await world.start()
            stack.push_async_callback(world.stop)
            driver, passenger = await world.driver(), await world.passenger()
            stack.push_async_callback(driver.disconnect)
            stack.push_async_callback(passenger.disconnect)
            ride_id = await world.start_ride(driver, passenger)
            await world.drive(driver, 1500)
            bill = await driver.say("ride.arrive", {"ride_id": ride_id})
            assert bill["total_cost"] == pytest.approx(4500, rel=0.01)
            assert (await passenger.say("ride.pay", {"ride_id": ride_id, "amount": bill["adjusted_cost"]}))["status"]
            for phone in (driver, passenger):
                await phone.expect("ride.completed", ride_id=ride_id)
            await driver.ask("GET", f"/users/{passenger.user_id}")
            for app in (world.app, *others):
                await app.sweep()
                report = await app.examine()
                assert report.status == "up", report.checks
                assert report.details["bus"].dead_letters == 0
                assert b"nebengjek_bus_up 1.0" in await app.metrics.render()
            assert {pod.pod_id for pod in world.app.pods.known()} == {f"pod-{name}" for name in MODULES}
    assert [line for line in lines if line["event"] == "nats.not_permitted"] == []


@pytest.mark.real
async def test_plugins_each_as_its_own_user_are_asked_and_answer(plugged: Place) -> None:
    """A question and its answer from one pod to another, and what is made of a person's name and address."""

    def pod(name: str) -> App:
        return plugged.pod(name.replace(".", "_"), name, plugins=PLUGINS)

    with capture_logs() as lines:
        async with AsyncExitStack() as stack:
            alone = [name for name in WITH_PLUGINS if name not in ("users", "chat")]
            others = [await stack.enter_async_context(started(pod(name))) for name in alone]
            people = World(lambda clock: pod("users"), plugged.clock)
            talk = World(lambda clock: pod("chat"), plugged.clock)
            for world in (people, talk):
                await world.start()
                stack.push_async_callback(world.stop)
            ani = await Phone(people).login()
            await ani.ask("PATCH", "/users/me", {"full_name": "Ani", "email": "ani@example.com"})
            ani.world = talk
            async with reading(ani, "sess_1") as reader:
                asked = await ani.ask("POST", "/chat/sess_1/messages", {"message": "where is my driver"})
                whole = (await reader.expect("message_complete", reply_to=asked["message_id"])).data
                assert reader.text(asked["message_id"]) == whole["text"]
            for app in (people.app, talk.app, *others):
                await app.sweep()
                report = await app.examine()
                assert report.status == "up", report.checks
                assert report.details["bus"].dead_letters == 0
    assert [line for line in lines if line["event"] == "nats.not_permitted"] == []


async def refused(work: Awaitable[Any], user: str, subject: str) -> None:
    """It fails at once, and says who may not do what."""
    with pytest.raises(NotPermitted) as error:
        await asyncio.wait_for(work, 2)
    assert f"the NATS user {user} may not" in str(error.value)
    assert subject in str(error.value)


@pytest.mark.real
async def test_a_module_that_says_hears_or_answers_what_is_anothers_is_refused(place: Place) -> None:
    async def heard(message: CoreMessage) -> None: ...

    with capture_logs() as lines:
        async with started(place.pod("match", "match")) as match, started(place.pod("rides", "rides")) as rides:
            ours = MatchUnavailable(passenger_id=uuid7(), search_id=uuid7(), finder_version=1, reason="no_drivers")
            before = (await match.bus.publish(ours)).seq
            # Saying.
            await refused(rides.bus.publish(ours), "rides", f"match.unavailable.{ours.passenger_id}")
            with pytest.raises(NotPermitted, match=r"match\.unavailable is match's to say"):
                async with rides.database.begin() as tx:
                    await rides.bus.outbox.add(tx, ours)
            assert (await match.broker.stream_info("MATCH_STREAM")).last_seq == before
            # Asking what is not its to ask, answering for another.
            await refused(rides.bus.request(AcceptMatch(match_id="m", user_id="u")), "rides", "rpc.match.accept")
            for queue in ("match", "rides", None):
                await refused(
                    rides.broker.subscribe("rpc.match.accept", heard, queue=queue), "rides", "rpc.match.accept"
                )
            # Hearing.
            for subject in ("match.found.*", "user.>", ">", "_INBOX.match.>", "$JS.ACK.>"):
                await refused(rides.broker.subscribe(subject, heard), "rides", subject)
            pulled = rides.broker.pull("RIDE_STREAM", "ride_pickup_match", expires=5)
            await refused(pulled, "rides", "$JS.API.CONSUMER.MSG.NEXT.RIDE_STREAM.ride_pickup_match")
            source = await rides.broker.consume("RIDE_STREAM", "ride_pickup_match", prefetch=8)
            await refused(source.next(1), "rides", "ride_pickup_match")
            await source.close()
            await refused(
                rides.broker.get_message("DEAD_LETTER_STREAM", 1), "rides", "$JS.API.STREAM.MSG.GET.DEAD_LETTER"
            )
            # Looking after the streams.
            work: list[Awaitable[Any]] = [
                rides.broker.purge_stream("RIDE_STREAM"),
                rides.broker.delete_stream("RIDE_STREAM"),
                rides.broker.delete_consumer("MATCH_STREAM", "match_accepted_rides"),
                rides.broker.pause_consumer("MATCH_STREAM", "match_accepted_rides", None),
                rides.broker.delete_message("RIDE_STREAM", 1),
            ]
            for one in work:
                await refused(one, "rides", "$JS.API.")
            # What it may, it still may; nobody serves it here.
            with pytest.raises(NoResponders):
                await rides.bus.request(LatestLocations(user_ids=[]), timeout=1)
    told = {line["error"] for line in lines if line["event"] == "nats.not_permitted" and line["log_level"] == "error"}
    assert f"the NATS user rides may not publish to match.unavailable.{ours.passenger_id}" in told


@pytest.mark.real
async def test_a_modules_pod_writes_and_finds_its_own_dead_letters(place: Place) -> None:
    root = JetStreamBroker(place.nats_url, name="root", user="root", password="root")
    await root.connect()

    async def until(holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(10):
            while not await holds():  # noqa: ASYNC110 - the server is asked, it does not tell
                await asyncio.sleep(0.02)

    async def letters(count: int) -> None:
        async def there() -> bool:
            return (await root.stream_info("DEAD_LETTER_STREAM")).messages == count

        await until(there)

    async def looked_at() -> int:
        return (await root.consumer_info("ADVISORY_STREAM", "dead_letters_match")).ack_floor.consumer

    async def gave_up(seq: int) -> None:
        """As the server says it, and until it was dealt with."""
        before = await looked_at()

        async def dealt_with() -> bool:
            return await looked_at() > before

        body = f'{{"stream":"RIDE_STREAM","consumer":"ride_pickup_match","stream_seq":{seq},"deliveries":5}}'
        subject = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.RIDE_STREAM.ride_pickup_match"
        await root.core_publish(subject, body.encode())
        await until(dealt_with)

    with capture_logs() as lines:
        async with started(place.pod("match", "match")) as match:
            await root.purge_stream("DEAD_LETTER_STREAM")
            seq = (await asyncio.wait_for(root.submit("ride.pickup.x", b"{not json", {}), 5)).seq
            await letters(1)
            await gave_up(seq)
            await letters(1)
            await gave_up((await asyncio.wait_for(root.submit("ride.progress.x", b"{}", {}), 5)).seq)
            await letters(2)
            assert (await match.bus.health()).dead_letters == 2
            await root.purge_stream("DEAD_LETTER_STREAM")
    await root.close()
    assert [line for line in lines if line["event"] in ("nats.not_permitted", "dead_letter.failed")] == []


@pytest.mark.real
async def test_a_pod_under_another_modules_user_does_not_start(place: Place) -> None:
    with pytest.raises(NotPermitted, match=r"the NATS user rides may not listen to rpc\.match\."):
        async with started(place.pod("match", "match", user="rides")):
            pass


@pytest.mark.real
async def test_a_user_without_its_inbox_is_told(place: Place) -> None:
    password = PASSWORDS["NATS_RIDES_PASSWORD"]
    broker = JetStreamBroker(place.nats_url, name="t", user="rides", password=password, inbox_prefix="_INBOX.match")
    await broker.connect()
    assert broker.status is ConnectionStatus.UP
    ways: list[Callable[[], Awaitable[Any]]] = [
        lambda: broker.stream_info("RIDE_STREAM"),
        lambda: broker.submit("ride.pickup.x", b"", {}),
        lambda: broker.pull("MATCH_STREAM", "match_accepted_rides", expires=5),
    ]
    for way in ways:
        await refused(way(), "rides", "_inbox.match.")
    assert "may not listen to _inbox.match" in str(broker.connection().error)
    await broker.close()


@pytest.mark.real
async def test_the_operator_and_the_user_that_is_everything(place: Place) -> None:
    async with started(place.pod(EVERYTHING, *MODULES)) as everything:
        report = await everything.examine()
        assert report.status == "up", report.checks
        async with started(place.pod(OPERATOR)) as operator:
            assert (await operator.examine()).status == "up"
            broker = operator.broker
            assert await broker.purge_stream("DEAD_LETTER_STREAM") >= 0
            await broker.delete_consumer("USER_STREAM", "user_presence_match")
            assert {info.spec.name for info in await broker.streams()} > {"RIDE_STREAM", "DEAD_LETTER_STREAM"}
            with pytest.raises(NotPermitted):
                await asyncio.wait_for(broker.submit("nobodys.subject", b"", {}), 2)
