"""The wire: every contract survives it, tolerates additions, and looks as its golden file says."""

import json
from pathlib import Path
from typing import Any, get_origin

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nebengjek.bus.codec import Codec, Undecodable
from nebengjek.bus.subjects import subject_matches
from nebengjek.clock import ManualClock
from nebengjek.contracts.message import (
    Event,
    InvalidSubject,
    Query,
    answer_type,
    is_id,
    message_id,
    rpc_subject,
    subject_of,
    type_of,
    uuid7,
)
from tests.contracts.kinds import ALL_STREAMS, EVENTS, QUERIES, fields_of, values

GOLDEN = Path(__file__).parent / "golden"
CODEC = Codec("tests", ManualClock())
every_event = pytest.mark.parametrize("kind", EVENTS, ids=type_of)
every_query = pytest.mark.parametrize("kind", QUERIES, ids=type_of)


def golden(kind: type[Event]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{type_of(kind)}.json").read_text())
    return found


def decoded(kind: type[Event], data: dict[str, Any]) -> Event:
    decoded: Event = CODEC.decode_any(json.dumps(data).encode(), kind)
    return decoded


def takers(subject: str) -> list[str]:
    """The streams that take it."""
    return [spec.name for spec in ALL_STREAMS if any(subject_matches(pattern, subject) for pattern in spec.subjects)]


# -- there and back


@pytest.mark.parametrize(
    "kind", [*EVENTS, *QUERIES], ids=lambda kind: rpc_subject(kind) if kind in QUERIES else type_of(kind)
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_contract_comes_back_as_it_went(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(values(kind))
    assert CODEC.decode_any(CODEC.encode(value), kind) == value


@every_query
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_answer_comes_back_as_it_went(kind: type[Query[Any]], data: st.DataObject) -> None:
    answer = data.draw(values(answer_type(kind)))
    assert CODEC.decode_any(CODEC.encode(answer), answer_type(kind)) == answer


# -- the golden files


@every_event
def test_an_event_looks_as_its_golden_file_says(kind: type[Event]) -> None:
    written = golden(kind)
    assert written["type"] == type_of(kind)
    assert written.keys() == fields_of(kind), "a field that was added belongs into the golden file"
    assert json.loads(CODEC.encode(decoded(kind, written))) == written


def test_there_is_a_golden_file_for_each_event_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*")} == {type_of(kind) for kind in EVENTS}


@every_event
def test_what_a_newer_pod_adds_is_ignored(kind: type[Event]) -> None:
    # What a map holds is no field of ours.
    maps = {field.encode_name for field in msgspec.structs.fields(kind) if get_origin(field.type) is dict}

    def grown(value: Any) -> Any:
        if isinstance(value, dict):
            inner = {key: one if key in maps else grown(one) for key, one in value.items()}
            return {"new": {"deep": [1, None]}} | inner
        return value

    assert decoded(kind, grown(golden(kind))) == decoded(kind, golden(kind))


@every_event
def test_what_an_older_pod_leaves_out_has_its_default(kind: type[Event]) -> None:
    written = golden(kind)
    for field in msgspec.structs.fields(kind):
        without = {key: value for key, value in written.items() if key != field.encode_name}
        if field.required:
            with pytest.raises(Undecodable):
                decoded(kind, without)
        else:
            assert getattr(decoded(kind, without), field.name) == field.default


@every_event
def test_the_subject_alone_says_what_it_is(kind: type[Event]) -> None:
    """A bare JSON object without its type is read too; one of another type is not."""
    written = golden(kind)
    event = decoded(kind, written)
    assert decoded(kind, {key: value for key, value in written.items() if key != "type"}) == event
    with pytest.raises(Undecodable):
        decoded(kind, written | {"type": "another.event"})


# -- names


@every_event
def test_subjects_and_message_ids_are_made_of_type_key_and_number(kind: type[Event]) -> None:
    written = golden(kind)
    event = decoded(kind, written)
    entity = written[kind.key]
    assert subject_of(event) == f"{type_of(kind)}.{entity}"
    domain = type_of(kind).partition(".")[0].upper().replace("NOTIFICATION", "NOTIFICATIONS")
    assert takers(subject_of(event)) == [f"{domain}_STREAM"]
    envelope = CODEC.envelope(event)
    assert envelope.subject == subject_of(event)
    assert envelope.headers["Event-Type"] == type_of(kind)
    if kind.number is not None:
        assert message_id(event) == f"{type_of(kind)}-{entity}-{written[kind.number]}"
    else:
        prefix, number = f"{type_of(kind)}-{entity}-", message_id(event)
        assert number.startswith(prefix)
        assert is_id(number.removeprefix(prefix))
        assert message_id(event) != number


BAD_KEYS = ["a.b", ">", "*", "", " ", "a b", "a\tb", "a\n", "é", "a.", ".a", "x" * 129, "a\x00b", "*.>", "a\x7f"]


@every_event
@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_no_token_is_refused(kind: type[Event], key: str) -> None:
    event = msgspec.structs.replace(decoded(kind, golden(kind)), **{kind.key: key})
    with pytest.raises(InvalidSubject):
        subject_of(event)
    with pytest.raises(InvalidSubject):
        CODEC.envelope(event)


@given(st.text())
def test_no_key_whatsoever_leads_to_another_subject(key: str) -> None:
    event = msgspec.structs.replace(decoded(EVENTS[0], golden(EVENTS[0])), **{EVENTS[0].key: key})
    try:
        subject = subject_of(event)
    except InvalidSubject:
        return
    assert subject == f"{type_of(EVENTS[0])}.{key}"
    assert subject.count(".") == 2
    assert subject.isascii()
    assert not set(subject) & set("*> \t\r\n")


@every_query
def test_questions_lie_outside_every_stream(kind: type[Query[Any]]) -> None:
    assert rpc_subject(kind) == f"rpc.{type_of(kind)}"
    assert takers(rpc_subject(kind)) == []


def test_no_two_contracts_share_a_name() -> None:
    for kinds in (EVENTS, QUERIES):
        names = [type_of(kind) for kind in kinds]
        assert len(names) == len(set(names))


def test_contracts_do_not_change_after_they_were_made() -> None:
    for kind in [*EVENTS, *QUERIES]:
        assert kind.__struct_config__.frozen, kind


@pytest.mark.parametrize("tag", ["ride", "Ride.pickup", "ride.", "ride..pickup", "ride.*", 7])
def test_a_type_is_a_domain_and_an_action(tag: Any) -> None:
    with pytest.raises(TypeError):
        type_of(type("Wrong", (Event,), {}, frozen=True, tag=tag))


def test_an_event_without_a_type_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        type_of(Event)


# -- ids


def test_ids_are_ordered_by_time_unique_and_of_version_7() -> None:
    ids = [uuid7() for _ in range(5000)]
    assert len(set(ids)) == 5000
    assert all(is_id(one) and one[14] == "7" and one[19] in "89ab" for one in ids)
    moments = [one[:13] for one in ids]
    assert moments == sorted(moments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0192f0c0-7c4e-7a31-9d5b-5b1f0f3a1c0",
        "0192F0C0-7C4E-7A31-9D5B-5B1F0F3A1C01",
        "0192f0c0-7c4e-7a31-9d5b-5b1f0f3a1c01\n",
        "0192f0c0-7c4e-7a31-9d5b-5b1f0f3a1c0\x00",
        "' OR 1=1 --",
    ],
)
def test_what_comes_from_outside_may_be_no_id_at_all(text: str) -> None:
    assert not is_id(text)
