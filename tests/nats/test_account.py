"""What the account allows is looked at before anything is made: who does not fit is named, and nothing is half made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nebengjek.app import App
from nebengjek.bus.capacity import check_account
from nebengjek.bus.interface import Account, Allowance
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.specs import Storage, StreamSpec
from nebengjek.errors import Misconfigured
from nebengjek.settings import load
from nebengjek.streams import MIB, STREAMS
from tests.servers import nats_server

real = pytest.mark.real
NAMES = [spec.name for spec in STREAMS]


def account_of(limits: str) -> str:
    return f"accounts {{ A {{ jetstream {{ {limits} }}, users: [ {{ user: a, password: a }} ] }} }}"


@asynccontextmanager
async def started(url: str, folder: Path, **variables: str) -> AsyncIterator[App]:
    env = {"NATS_URL": url, "DATABASE_URL": f"sqlite:///{folder}/x.sqlite3", "NEBENGJEK__NATS__CONNECT_TIMEOUT": "1"}
    app = App(load(env=env | variables), sweeping=False)
    try:
        await asyncio.wait_for(app.start(), 20)
        yield app
    finally:
        await app.stop()


async def refusal(url: str, folder: Path) -> str:
    with pytest.raises(Misconfigured) as refused:
        async with started(url, folder):
            pass
    return str(refused.value)


async def streams_at(url: str) -> set[str]:
    broker = JetStreamBroker(url, name="t")
    await broker.connect()
    found = {info.spec.name for info in await broker.streams()}
    await broker.close()
    return found


@real
async def test_an_account_with_just_enough_room(tmp_path: Path) -> None:
    limits = "max_mem: 100MB, max_file: 460MB, max_streams: 6, max_consumers: 20"
    with nats_server(access=account_of(limits)) as server:
        url = server.url.replace("//", "//a:a@")
        async with started(url, tmp_path) as app:
            assert (await app.examine()).status == "up"
        # The second start finds the streams: what they reserve is their own.
        async with started(url, tmp_path) as app:
            assert (await app.examine()).status == "up"


@real
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            "max_mem: 50MB, max_file: 1GB",
            ["LOCATION_STREAM 100.0 MiB (memory storage) need 100.0 MiB", "the account allows 50.0 MiB", "max_memory"],
        ),
        (
            "max_mem: 1GB, max_file: 300MB",
            ["USER_STREAM 100.0 MiB", "RIDE_STREAM 200.0 MiB", "need 460.0 MiB: the account allows 300.0 MiB"],
        ),
        ("max_mem: 1GB, max_file: 1GB, max_streams: 3", [", ".join(NAMES), "allows 3 streams and has 0"]),
        ("max_mem: 1GB, max_file: 1GB, max_consumers: 4", ["RIDE_STREAM has", "the account allows 4 on a stream"]),
    ],
)
async def test_an_account_without_room_names_the_streams(limits: str, said: list[str], tmp_path: Path) -> None:
    with nats_server(access=account_of(limits)) as server:
        url = server.url.replace("//", "//a:a@")
        error = await refusal(url, tmp_path)
        for words in said:
            assert words in error
        assert await streams_at(url) == set()


@real
async def test_a_server_without_room_names_the_stream(tmp_path: Path) -> None:
    """The account has no limit of its own; the server's is not told to anybody, so it is found when it is reached."""
    access = "accounts { A { jetstream: enabled, users: [ { user: a, password: a } ] } }"
    with nats_server(access=access, jetstream="max_mem: 50MB, max_file: 1GB") as server:
        error = await refusal(server.url.replace("//", "//a:a@"), tmp_path)
        assert "LOCATION_STREAM (memory storage, 100.0 MiB): the server has no memory for it" in error


@real
async def test_an_account_without_jetstream(tmp_path: Path) -> None:
    access = "accounts { A { users: [ { user: a, password: a } ] } }"
    with nats_server(access=access) as server:
        error = await refusal(server.url.replace("//", "//a:a@"), tmp_path)
        assert error == f"JetStream is not enabled for our account at {server.url}"


@real
async def test_a_domain_that_there_is_not(tmp_path: Path) -> None:
    """It may come, as a leaf node does; until then health says what is missing, and the process serves."""
    with nats_server(domain="hub") as server:
        async with started(server.url, tmp_path, JETSTREAM_DOMAIN="nowhere") as app:
            report = await app.examine()
            (bus,) = [check for check in report.checks if check.name == "bus"]
            assert bus.reason == f"no JetStream answers at {server.url} under $JS.nowhere.API"
        async with started(server.url, tmp_path, JETSTREAM_DOMAIN="hub") as app:
            assert (await app.examine()).status == "up"


async def test_settings_that_allow_less_than_the_streams_may_hold(tmp_path: Path) -> None:
    for name, words in (("MEMORY", "the memory streams may hold"), ("STORAGE", "the file streams may hold")):
        with pytest.raises(Misconfigured, match=words):
            async with started("nats://127.0.0.1:1", tmp_path, **{f"JETSTREAM_MAX_{name}": "10MB"}):
                pass


# -- the sums


def spec(name: str, size: int, replicas: int = 1, storage: Storage = Storage.FILE) -> StreamSpec:
    return StreamSpec(name=name, subjects=(f"{name}.>",), max_bytes=size * MIB, replicas=replicas, storage=storage)


def test_replicas_count_and_what_is_there_does_not_count_again() -> None:
    account = Account(allowed=Allowance(storage=90 * MIB), reserved_storage=30 * MIB)
    check_account([spec("A", 20, 3)], {}, [], account)
    with pytest.raises(Misconfigured, match=r"A 63\.0 MiB .* the account allows 90\.0 MiB, .* reserve 30\.0 MiB"):
        check_account([spec("A", 21, 3)], {}, [], account)
    # It reserves 10 x 3 already; 20 more on each replica.
    check_account([spec("A", 30, 3)], {"A": spec("A", 10, 3)}, [], account)
    with pytest.raises(Misconfigured, match=r"A 63\.0 MiB"):
        check_account([spec("A", 31, 3)], {"A": spec("A", 10, 3)}, [], account)
    # One without a limit reserves nothing.
    check_account([StreamSpec(name="A", subjects=("a",), max_bytes=-1)], {}, [], account)


def test_an_account_in_tiers() -> None:
    tier = Account(allowed=Allowance(storage=50 * MIB, memory=0, streams=2))
    account = Account(tiers={3: tier})
    # A tier counts a stream once.
    check_account([spec("A", 50, 3)], {}, [], account)
    with pytest.raises(Misconfigured) as refused:
        check_account([spec("A", 51, 3), spec("B", 1), spec("C", 1, 3, Storage.MEMORY)], {}, [], account)
    assert "nothing with 1 replicas: B" in str(refused.value)
    assert "A 51.0 MiB (file storage)" in str(refused.value)
    assert "C 1.0 MiB (memory storage)" in str(refused.value)
