"""The streams are the contract's table, and no two modules share a durable consumer."""

import pytest

from nebengjek.bus.specs import Discard
from nebengjek.bus.subjects import subjects_collide
from nebengjek.errors import Misconfigured
from nebengjek.streams import MIB, STREAMS, check_capacity, durable_name, durable_names, stream_of, streams

TABLE = [
    ("USER_STREAM", "user.>", "interest", "file", 24 * 3600, 100, 1_000_000),
    ("MATCH_STREAM", "match.>", "interest", "file", 3600, 50, 500_000),
    ("RIDE_STREAM", "ride.>", "limits", "file", 7 * 24 * 3600, 200, 2_000_000),
    ("LOCATION_STREAM", "location.>", "interest", "memory", 2 * 3600, 100, 1_000_000),
    ("DEAD_LETTER_STREAM", "dead_letter.>", "limits", "file", 14 * 24 * 3600, 100, 1_000_000),
    ("ADVISORY_STREAM", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", "limits", "file", 14 * 24 * 3600, 10, 100_000),
]


def test_the_table() -> None:
    rows = [(s.name, *s.subjects, s.retention, s.storage, s.max_age, s.max_bytes // MIB, s.max_msgs) for s in STREAMS]
    assert rows == TABLE
    assert {(s.discard, s.duplicate_window, s.replicas) for s in STREAMS} == {(Discard.OLD, 300, 1)}


def test_replicas_in_a_cluster() -> None:
    assert {spec.replicas for spec in streams(3)} == {3}


def test_no_subject_belongs_to_two_streams() -> None:
    for one in STREAMS:
        for other in STREAMS:
            assert one is other or not subjects_collide(*one.subjects, *other.subjects)


def test_the_stream_of_an_event() -> None:
    assert stream_of("user.driver.registered").name == "USER_STREAM"
    with pytest.raises(Misconfigured, match=r"no stream takes chat\.asked"):
        stream_of("chat.asked")


def test_durable_names() -> None:
    """A4."""
    assert durable_name("ride.pickup", "match") == "ride_pickup_match"
    heard = [("ride.pickup", "match"), ("ride.pickup", "users")]
    assert durable_names(heard)["ride.pickup", "users"] == "ride_pickup_users"


def test_a_shared_durable_is_refused() -> None:
    with pytest.raises(Misconfigured, match="user_driver_registered_chat"):
        durable_names([("user.driver.registered", "chat"), ("user.driver_registered", "chat")])


def test_streams_that_cannot_fit_refuse_to_start() -> None:
    check_capacity(STREAMS, max_memory=100 * MIB, max_storage=460 * MIB)
    check_capacity(STREAMS, max_memory=None, max_storage=None)
    with pytest.raises(Misconfigured, match=r"nats\.max_memory"):
        check_capacity(STREAMS, max_memory=100 * MIB - 1, max_storage=None)
    with pytest.raises(Misconfigured, match=r"nats\.max_storage"):
        check_capacity(streams(3), max_memory=None, max_storage=460 * MIB)
