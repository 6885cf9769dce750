"""What an account may use: streams reserve it when they are made, and what is stored counts."""

from collections.abc import Awaitable
from typing import Any

import pytest

from nebengjek.bus.errors import ApiError, PublishRefused
from nebengjek.bus.interface import Allowance
from nebengjek.bus.specs import ConsumerSpec, Storage, StreamSpec
from tests.conformance.harness import Harness, submit

ALLOWED = Allowance(memory=1000, storage=5000, streams=3, consumers=2)


def spec(name: str, max_bytes: int = -1, **options: Any) -> StreamSpec:
    return StreamSpec(name=name, subjects=(f"{name}.>",), max_bytes=max_bytes, **options)


async def code(work: Awaitable[Any]) -> int:
    with pytest.raises(ApiError) as error:
        await work
    return error.value.code


async def test_m1_streams_reserve_their_bytes(harness: Harness) -> None:
    await harness.limit(ALLOWED)
    broker = await harness.make_broker()
    assert await code(broker.create_stream(spec("A", 6000))) == 10047
    assert await code(broker.create_stream(spec("A", 2000, storage=Storage.MEMORY))) == 10028
    await broker.create_stream(spec("A"))
    await broker.create_stream(spec("B", 3000))
    assert await code(broker.create_stream(spec("C", 3000))) == 10047
    assert await code(broker.update_stream(spec("B", 6000))) == 10047
    await broker.update_stream(spec("B", 4000))
    await broker.create_stream(spec("C", 600, storage=Storage.MEMORY))
    assert await code(broker.create_stream(spec("D", 60))) == 10027
    account = await broker.account()
    assert account.allowed == ALLOWED
    assert (account.reserved_memory, account.reserved_storage, account.streams) == (600, 4000, 3)
    await broker.delete_stream("C")
    await broker.create_stream(spec("D", 60))


async def test_m2_each_stream_has_so_many_consumers(harness: Harness) -> None:
    await harness.limit(ALLOWED)
    broker = await harness.make_broker()
    await broker.create_stream(spec("A"))
    await broker.create_stream(spec("B"))
    assert await code(broker.create_stream(spec("C", max_consumers=3))) == 10026
    for name in ("c", "d"):
        await broker.create_consumer("A", ConsumerSpec(name=name))
        await broker.create_consumer("A", ConsumerSpec(name=name))
    for too_many in (ConsumerSpec(name="e"), ConsumerSpec()):
        assert await code(broker.create_consumer("A", too_many)) == 10026
    await broker.create_consumer("B", ConsumerSpec(name="e"))
    await broker.delete_consumer("A", "c")
    await broker.create_consumer("A", ConsumerSpec(name="e"))


async def test_m3_what_is_stored_counts_over_all_streams(harness: Harness) -> None:
    await harness.limit(ALLOWED)
    broker = await harness.make_broker()
    await broker.create_stream(spec("A"))
    await broker.create_stream(spec("B"))
    await broker.create_stream(spec("C", storage=Storage.MEMORY))
    for seq in range(1, 5):
        assert (await submit(broker, "A.x", b"x" * 1000)).seq == seq
    for subject in ("A.x", "B.x"):
        with pytest.raises(PublishRefused) as refused:
            await submit(broker, subject, b"x" * 1000)
        assert refused.value.code == 10002
    # Memory is counted by itself, and nothing of what was refused is remembered.
    assert (await submit(broker, "C.x", b"x" * 500)).seq == 1
    assert await broker.purge_stream("A") == 4
    assert (await submit(broker, "B.x", b"x" * 1000)).seq == 1
    assert (await submit(broker, "A.x", b"x" * 1000)).seq == 5
