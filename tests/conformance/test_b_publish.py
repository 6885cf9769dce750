"""B, P: what a publish is checked for, in which order, and what a stream's limits do to it."""

import asyncio

import pytest
from msgspec import structs

from nebengjek.bus.errors import ApiError, NoStream, PublishRefused
from nebengjek.bus.interface import Broker
from nebengjek.bus.messages import (
    EXPECTED_LAST_MSG_ID,
    EXPECTED_LAST_SEQ,
    EXPECTED_LAST_SUBJECT_SEQ,
    EXPECTED_STREAM,
    MSG_ID,
    PubAck,
)
from nebengjek.bus.specs import Discard, Retention, Storage, StreamSpec
from tests.conformance.harness import Ear, Harness, T, consumer, here, publish, seqs, stream, submit


async def refused(broker: Broker, subject: str, data: bytes = b"x", headers: dict[str, str] | None = None) -> int:
    with pytest.raises(PublishRefused) as error:
        await submit(broker, subject, data, headers)
    return error.value.code


async def test_b19_a_listener_hides_that_no_stream_takes_it(harness: Harness) -> None:
    """P1: there is no "no responders" where somebody listens, and nobody answers."""
    broker = await harness.make_broker()
    await stream(broker)
    ear = await Ear(harness).listen(broker, "nowhere.>")
    future = broker.submit("nowhere.a", b"x", {})
    await ear.hears(1)
    await harness.advance(4 * T)
    assert not future.done()
    future.cancel()
    with pytest.raises(NoStream):
        await harness.until(broker.submit("elsewhere.a", b"x", {}))


async def test_b20_no_sequence_is_used_again(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.a", "s.a")
    await broker.delete_message("S", 3)
    info = await broker.stream_info("S")
    assert (info.messages, info.last_seq) == (2, 3)
    assert await submit(broker, "s.a") == PubAck("S", 4)
    for seq in (1, 2, 4):
        await broker.delete_message("S", seq)
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq, info.bytes) == (0, 5, 4, 0)
    assert await submit(broker, "s.a") == PubAck("S", 5)


WRONG = {
    EXPECTED_STREAM: ("X", 10060),
    EXPECTED_LAST_SUBJECT_SEQ: ("7", 10071),
    EXPECTED_LAST_SEQ: ("7", 10071),
    EXPECTED_LAST_MSG_ID: ("other", 10070),
}


async def test_b21_the_checks_come_in_their_order(harness: Harness) -> None:
    """P2: each message is wrong in several ways; the first check that fails speaks.

    Not so with the size: 2.15 looks at it first, earlier servers last.
    """
    broker = await harness.make_broker()
    spec = await stream(broker, max_msgs=2, discard=Discard.NEW)
    await submit(broker, "s.a", headers={MSG_ID: "first"})
    await submit(broker, "s.b", headers={MSG_ID: "second"})
    headers = {name: value for name, (value, _) in WRONG.items()}
    for name, (_, code) in WRONG.items():
        with pytest.raises(PublishRefused) as error:
            await submit(broker, "s.a", b"x", headers | {MSG_ID: "new"})
        assert error.value.code == code
        del headers[name]
    # Whether it is a duplicate is looked at before the last id and the room, and after the sequences.
    assert await submit(broker, "s.a", headers={MSG_ID: "first"}) == PubAck("S", 1, True)
    assert await submit(broker, "s.a", headers={MSG_ID: "first", EXPECTED_LAST_MSG_ID: "z"}) == PubAck("S", 1, True)
    assert await refused(broker, "s.a", headers={MSG_ID: "first", EXPECTED_LAST_SEQ: "9"}) == 10071
    assert await refused(broker, "s.a") == 10077
    assert (await broker.stream_info("S")).last_seq == 2
    await broker.update_stream(structs.replace(spec, max_msgs=3))
    assert await submit(broker, "s.a", headers={EXPECTED_LAST_MSG_ID: "second"}) == PubAck("S", 3)


async def test_b21_the_texts_name_what_is(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.b")
    with pytest.raises(PublishRefused) as error:
        await submit(broker, "s.a", headers={EXPECTED_LAST_SEQ: "9"})
    assert error.value.description.endswith("2")
    assert error.value.status == 400
    with pytest.raises(PublishRefused) as error:
        await submit(broker, "s.a", headers={EXPECTED_LAST_SUBJECT_SEQ: "9"})
    assert error.value.description.endswith("1")


async def test_b22_an_expectation_that_is_no_number_is_not_met(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    for value in ("abc", "-1", "1.0", "0x0"):
        for name in (EXPECTED_LAST_SEQ, EXPECTED_LAST_SUBJECT_SEQ):
            assert await refused(broker, "s.a", headers={name: value}) == 10071
    assert await submit(broker, "s.a", headers={EXPECTED_LAST_SEQ: "0"}) == PubAck("S", 1)
    # An empty one is none.
    for name in (EXPECTED_LAST_SEQ, EXPECTED_LAST_SUBJECT_SEQ, EXPECTED_LAST_MSG_ID, EXPECTED_STREAM):
        assert (await submit(broker, "s.a", headers={name: ""})).stream == "S"


async def test_b22_the_last_of_a_subject_is_its_own(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.b", "s.b")
    expect = {EXPECTED_LAST_SUBJECT_SEQ: "1"}
    assert await submit(broker, "s.a", headers=expect) == PubAck("S", 4)
    assert await refused(broker, "s.a", headers=expect) == 10071
    await broker.delete_message("S", 4)
    # What is gone is no longer its last.
    assert await submit(broker, "s.a", headers=expect) == PubAck("S", 5)
    await broker.purge_stream("S", subject="s.a")
    assert await submit(broker, "s.a", headers={EXPECTED_LAST_SUBJECT_SEQ: "0"}) == PubAck("S", 6)


async def test_b22_only_one_of_many_with_the_same_expectation(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    await stream(broker)
    tries = [one.submit("s.a", b"x", {EXPECTED_LAST_SUBJECT_SEQ: "0"}) for _ in range(10) for one in (broker, other)]
    outcomes = await harness.until(asyncio.gather(*tries, return_exceptions=True))
    assert [one for one in outcomes if isinstance(one, PubAck)] == [PubAck("S", 1)]
    assert {one.code for one in outcomes if isinstance(one, PublishRefused)} == {10071}


async def test_b23_a_refused_publish_leaves_nothing_behind(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs=1, discard=Discard.NEW)
    await submit(broker, "s.a", headers={MSG_ID: "a"})
    with pytest.raises(PublishRefused) as error:
        await submit(broker, "s.a", headers={MSG_ID: "b"})
    assert (error.value.code, error.value.status) == (10077, 503)
    await broker.purge_stream("S")
    # Neither its id nor that it was the last one.
    assert await submit(broker, "s.a", headers={EXPECTED_LAST_MSG_ID: "a", MSG_ID: "b"}) == PubAck("S", 2)


async def test_b24_discard_new_by_bytes(harness: Harness) -> None:
    broker = await harness.make_broker()
    # 100 + 3 + 16 bytes each. Servers differ in whether the very last byte may be used.
    await stream(broker, storage=Storage.MEMORY, max_bytes=300, discard=Discard.NEW)
    await publish(broker, "s.a", "s.a", data=b"x" * 100)
    assert await refused(broker, "s.a", b"x" * 44) == 10077
    assert await submit(broker, "s.a", b"x" * 42) == PubAck("S", 3)
    assert (await broker.stream_info("S")).bytes == 299


async def test_b24_a_subject_at_its_limit_makes_room_for_itself(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=Storage.MEMORY, max_bytes=300, max_msgs=2, max_msgs_per_subject=1, discard=Discard.NEW)
    await publish(broker, "s.a", "s.b", data=b"x" * 100)
    # It takes the place of its own subject's oldest, not of another's.
    assert await submit(broker, "s.a", b"y" * 100) == PubAck("S", 3)
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.bytes) == (2, 2, 238)
    assert await refused(broker, "s.c", b"x") == 10077


async def test_b24_per_subject_refuses_only_full_subjects(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, max_msgs_per_subject=2, discard=Discard.NEW, discard_new_per_subject=True)
    await publish(broker, "s.a", "s.a", "s.b")
    assert await refused(broker, "s.a", headers={MSG_ID: "x"}) == 10077
    await publish(broker, "s.b")
    await broker.delete_message("S", 1)
    assert await submit(broker, "s.a", headers={MSG_ID: "x"}) == PubAck("S", 5)


async def test_b25_new_limits_apply_to_what_is_stored(harness: Harness) -> None:
    broker = await harness.make_broker()
    spec = await stream(broker, storage=Storage.MEMORY)
    await consumer(broker)
    await publish(broker, *["s.a", "s.b"] * 5)
    await here(broker, 2)
    spec = structs.replace(spec, max_msgs=4)
    await broker.update_stream(spec)
    assert (await broker.stream_info("S")).first_seq == 7
    await broker.update_stream(structs.replace(spec, max_bytes=45))
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.bytes) == (2, 9, 40)
    assert (await broker.consumer_info("S", "c")).num_ack_pending == 0
    assert seqs(await here(broker)) == [9, 10]


async def test_b25_a_stream_may_take_other_subjects(harness: Harness) -> None:
    broker = await harness.make_broker()
    spec = await stream(broker, "S", "s.>")
    await publish(broker, "s.a")
    await broker.update_stream(structs.replace(spec, subjects=("s.a", "t.*")))
    with pytest.raises(NoStream):
        await harness.until(broker.submit("s.b", b"x", {}))
    await publish(broker, "s.a", "t.b")
    assert (await broker.stream_info("S")).messages == 3


async def test_b26_what_is_not_said_is_unlimited(harness: Harness) -> None:
    broker = await harness.make_broker()
    spec = StreamSpec(
        name="S",
        subjects=(),
        max_age=0,
        max_bytes=0,
        max_msgs=-7,
        max_msgs_per_subject=0,
        max_msg_size=0,
        max_consumers=0,
        duplicate_window=0,
    )
    info = await broker.create_stream(spec)
    assert info.spec == structs.replace(
        spec,
        subjects=("S",),
        max_bytes=-1,
        max_msgs=-1,
        max_msgs_per_subject=-1,
        max_msg_size=-1,
        max_consumers=-1,
        duplicate_window=120.0,
    )
    assert await broker.create_stream(spec) == info
    assert await submit(broker, "S", headers={MSG_ID: "x"}) == PubAck("S", 1)
    assert (await submit(broker, "S", headers={MSG_ID: "x"})).duplicate
    short = await broker.create_stream(StreamSpec(name="A", subjects=("a",), max_age=60.0, duplicate_window=0))
    assert short.spec.duplicate_window == 60.0
    for negative in ({"max_age": -1.0}, {"duplicate_window": -1.0}):
        with pytest.raises(ApiError) as error:
            await stream(broker, "N", **negative)
        assert error.value.code == 10052


@pytest.mark.parametrize("storage", Storage)
async def test_b27_purging_by_several_words(harness: Harness, storage: Storage) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=storage)
    await publish(broker, *["s.a.x", "s.b.x", "s.a.y"] * 3)
    assert await broker.purge_stream("S", subject="s.a.*", up_to=6) == 3
    assert await broker.purge_stream("S", subject="s.*.x", keep=2) == 2
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (4, 6, 9)
    assert await broker.purge_stream("S", keep=100) == 0
    assert await broker.purge_stream("S", subject="s.a.>", keep=0) == 3
    assert await broker.purge_stream("S", subject="s.b.x", up_to=50) == 1
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (0, 10, 9)


@pytest.mark.parametrize("storage", Storage)
async def test_b27_a_purge_up_to_what_is_still_to_come_skips_numbers(harness: Harness, storage: Storage) -> None:
    broker = await harness.make_broker()
    await stream(broker, storage=storage)
    await consumer(broker)
    await publish(broker, "s.a", "s.a")
    assert await broker.purge_stream("S", up_to=7) == 2
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq, info.last_seq) == (0, 7, 6)
    assert await submit(broker, "s.a") == PubAck("S", 7)
    assert seqs(await here(broker)) == [7]


@pytest.mark.parametrize("retention", [Retention.INTEREST, Retention.WORKQUEUE])
async def test_b27_a_purge_takes_from_every_retention(harness: Harness, retention: Retention) -> None:
    broker = await harness.make_broker()
    await stream(broker, retention=retention)
    await consumer(broker)
    await publish(broker, *["s.a"] * 4)
    first, *_ = (await here(broker, 2)).messages
    assert await broker.purge_stream("S", up_to=4) == 3
    assert (await broker.stream_info("S")).messages == 1
    await first.ack()
    (left,) = (await here(broker)).messages
    await left.ack_sync()
    info = await broker.stream_info("S")
    assert (info.messages, info.first_seq) == (0, 5)


async def test_b27_the_ack_floor_jumps_over_what_a_purge_leaves(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await consumer(broker)
    await publish(broker, "s.a", "s.a", "s.b")
    first, second, _ = (await here(broker, 3)).messages
    await broker.purge_stream("S", subject="s.b")
    info = await broker.consumer_info("S", "c")
    assert (info.ack_floor.consumer, info.num_ack_pending) == (3, 2)
    await first.ack_sync()
    await second.ack_sync()
    info = await broker.consumer_info("S", "c")
    assert (info.ack_floor.consumer, info.num_ack_pending) == (3, 0)


async def test_b28_the_first_and_the_last_of_many(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await publish(broker, "s.a", "s.b", "s.a", data=b"1", headers={"k": "v"})
    for seq in (0, 4, 99):
        with pytest.raises(ApiError) as error:
            await broker.get_message("S", seq)
        assert (error.value.code, error.value.status) in ((10037, 404), (10003, 400))
    stored = await broker.get_message("S", 3)
    assert (stored.stream, stored.seq, stored.subject, stored.data, stored.headers) == ("S", 3, "s.a", b"1", {"k": "v"})
    await broker.delete_message("S", 3)
    assert (await broker.get_message("S", last_by_subject="s.a")).seq == 1
    assert (await broker.get_message("S", last_by_subject="s.>")).seq == 2
    # Of everything there is only the last one ever stored.
    with pytest.raises(ApiError) as error:
        await broker.get_message("S", last_by_subject=">")
    assert error.value.code == 10037
    await publish(broker, "s.c")
    assert (await broker.get_message("S", last_by_subject=">")).seq == 4
