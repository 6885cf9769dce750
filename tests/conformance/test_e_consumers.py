"""E: what a consumer may be, and what of it may change."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from nebengjek.bus.interface import ApiError, ConsumerSpec, Deliver, PullStatus, SequencePair
from tests.conformance.harness import (
    LATE,
    Harness,
    T,
    consumer,
    counts,
    here,
    nothing_comes,
    publish,
    pull,
    seqs,
    stream,
)


async def refused(broker: Any, **options: Any) -> int:
    with pytest.raises(ApiError) as error:
        await broker.create_consumer("S", ConsumerSpec(**{"name": "c", **options}))
    return error.value.code


async def test_e1_backoff_and_max_deliver(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert await refused(broker, backoff=(1.0, 2.0, 3.0), max_deliver=2) == 10116
    await consumer(broker, "three", backoff=(1.0, 2.0, 3.0), max_deliver=3)
    info = await broker.consumer_info("S", "three")
    assert (info.spec.ack_wait, info.spec.backoff) == (1.0, (1.0, 2.0, 3.0))
    await consumer(broker, "ever", backoff=(1.0, 2.0), max_deliver=-1)


@pytest.mark.parametrize(
    ("filters", "code"),
    [
        (("s.*", "s.a"), 10138),
        (("s.a", "s.>"), 10138),
        (("s.*.x", "s.y.*"), 10138),
        (("",), 10139),
        (("s.a", ""), 10139),
    ],
)
async def test_e2_filters(harness: Harness, filters: tuple[str, ...], code: int) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert await refused(broker, filters=filters) == code
    assert await broker.consumers("S") == []


async def test_e2_a_filter_that_nothing_matches_is_allowed(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker, "c", "S", "other.*")
    await publish(broker, "s.a")
    assert (await here(broker)).status is PullStatus.NO_MESSAGES


async def test_e3_five_tasks_make_one_consumer(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    spec = ConsumerSpec(name="c", filters=("s.a", "s.b"), description="one", ack_wait=7.5, max_ack_pending=11)
    infos = await asyncio.gather(*(broker.ensure_consumer("S", spec) for _ in range(5)))
    assert {info.name for info in infos} == {"c"}
    assert infos[0].spec == spec
    assert [info.spec for info in await broker.consumers("S")] == [spec]
    assert (await broker.stream_info("S")).consumers == 1


@pytest.mark.parametrize(
    "change",
    [{"deliver": Deliver.NEW}, {"deliver": Deliver.BY_SEQ, "start_seq": 3}, {"max_waiting": 7}],
)
async def test_e4_what_cannot_be_changed(harness: Harness, change: dict[str, Any]) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    spec = await consumer(broker)
    with pytest.raises(ApiError) as error:
        await broker.create_consumer("S", structs.replace(spec, **change))
    assert error.value.code == 10148
    with pytest.raises(ApiError) as error:
        await broker.ensure_consumer("S", structs.replace(spec, **change))
    assert error.value.code == 10012
    with pytest.raises(ApiError) as error:
        await broker.update_consumer("S", structs.replace(spec, name="other"))
    assert error.value.code == 10149


async def test_e4_changes_apply_to_later_deliveries(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    spec = await consumer(broker, "c", "S", "s.a", ack_wait=30.0)
    await publish(broker, "s.a", "s.b", "s.a")
    assert seqs(await here(broker, 1)) == [1]
    changed = structs.replace(spec, filters=("s.b",), ack_wait=T, max_deliver=2, max_ack_pending=5)
    assert (await broker.ensure_consumer("S", changed)).spec == changed
    assert seqs(await here(broker)) == [2]
    again = await pull(harness, broker, expires=3 * T)
    assert 2 in seqs(again) or 1 in seqs(again)
    assert counts(again) == [2]


async def test_e4_a_wider_filter_takes_what_lies_ahead(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    spec = await consumer(broker, "c", "S", "s.a")
    await publish(broker, "s.b", "s.a", "s.b", "s.a")
    await (await here(broker, 1)).messages[0].ack_sync()
    info = await broker.ensure_consumer("S", structs.replace(spec, filters=("s.*",)))
    assert info.num_pending == 2
    assert seqs(await here(broker)) == [3, 4]


async def test_e5_an_idle_consumer_goes(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    ephemeral = await broker.create_consumer("S", ConsumerSpec(inactive_threshold=1.0))
    assert ephemeral.spec.name is None
    for _ in range(4):
        status = (await pull(harness, broker, name=ephemeral.name, expires=0.5)).status
        assert status is PullStatus.TIMEOUT

    async def gone() -> None:
        while await broker.consumers("S"):
            await broker.sleep(0.05)

    await harness.until(gone(), 6)
    with pytest.raises(ApiError) as error:
        await broker.consumer_info("S", ephemeral.name)
    assert error.value.code == 10014


@pytest.mark.parametrize(
    "options",
    [
        {"deliver": Deliver.BY_SEQ},
        {"start_seq": 3},
        {"deliver": Deliver.NEW, "start_time": datetime(2030, 1, 1, tzinfo=UTC)},
        {"deliver": Deliver.BY_TIME},
        {"deliver": Deliver.BY_TIME, "start_seq": 2},
        {"deliver": Deliver.LAST_PER_SUBJECT},
    ],
)
async def test_e6_a_start_that_does_not_fit(harness: Harness, options: dict[str, Any]) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    assert await refused(broker, **options) == 10094


async def test_e7_a_stream_may_limit_its_consumers(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_consumers=1)
    await consumer(broker)
    assert await refused(broker, name="second") == 10026
    await consumer(broker)


async def test_e8_what_is_not_there(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    for call in (broker.consumer_info("S", "c"), broker.delete_consumer("S", "c")):
        with pytest.raises(ApiError) as error:
            await call
        assert (error.value.code, error.value.status) == (10014, 404)
    with pytest.raises(ApiError) as error:
        await broker.create_consumer("X", ConsumerSpec(name="c"))
    assert error.value.code == 10059


async def test_e9_a_paused_consumer_delivers_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a")
    now = (await broker.get_message("S", 1)).time.timestamp()
    until = datetime.fromtimestamp(now + 4 * T, UTC)
    await broker.pause_consumer("S", "c", until)
    info = await broker.consumer_info("S", "c")
    assert info.paused_until is not None
    assert abs((info.paused_until - until).total_seconds()) < 0.001
    assert (await here(broker)).status is PullStatus.NO_MESSAGES
    await nothing_comes(harness, broker, within=T)
    assert seqs(await pull(harness, broker, expires=4 * T + LATE)) == [1]
    await broker.pause_consumer("S", "c", datetime.fromtimestamp(now + 3600, UTC))
    await broker.pause_consumer("S", "c", None)
    await publish(broker, "s.a")
    assert seqs(await pull(harness, broker)) == [2]


async def test_e10_a_new_consumer_has_done_nothing(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.b", "s.a")
    info = await broker.create_consumer("S", ConsumerSpec(name="c", filters=("s.a",)))
    assert (info.stream, info.name, info.num_pending, info.num_ack_pending) == ("S", "c", 2, 0)
    assert (info.num_redelivered, info.num_waiting, info.paused_until) == (0, 0, None)
    assert info.ack_floor == SequencePair(0, 0)
