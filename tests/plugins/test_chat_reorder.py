"""Chunks come out in order and once, whatever became of them on the way; nothing grows beyond its bound."""

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from nebengjek_plugins.chat.contracts import ATTEMPT, ResponseChunk, is_restart
from nebengjek_plugins.chat.reorder import Reorder

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def chunk(number: int, text: str = "x", *, final: bool = False, restart: bool = False) -> ResponseChunk:
    return ResponseChunk(
        session_id="s",
        message_id="m",
        chunk_id=number,
        chunk=text,
        chunk_type="system" if restart else "content",
        is_final=final,
        timestamp=NOW,
        correlation_id="c",
    )


def answer(size: int, attempt: int = 1) -> list[ResponseChunk]:
    first = (attempt - 1) * ATTEMPT
    chunks = [chunk(first, restart=True)] if attempt > 1 else []
    while len(chunks) < size:
        number = first + len(chunks)
        chunks.append(chunk(number, f"{number} ", final=len(chunks) == size - 1))
    return chunks


@given(data=st.data(), size=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_any_order_and_any_repetition_comes_out_as_it_was_said(data: st.DataObject, size: int) -> None:
    said = answer(size)
    more = data.draw(st.lists(st.sampled_from(said), max_size=40))
    buffer = Reorder()
    heard = [one for part in data.draw(st.permutations(said + more)) for one in buffer.add(part, 0.0)]
    assert heard == said
    assert buffer.over
    assert (buffer.waiting, buffer.missing) == (0, None)


@given(data=st.data(), size=st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_what_is_lost_is_named_and_nothing_behind_it_is_heard(data: st.DataObject, size: int) -> None:
    said = answer(size)
    lost = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size - 1))
    buffer = Reorder()
    left = [one for one in said if one.chunk_id not in lost]
    heard = [one for part in data.draw(st.permutations(left)) for one in buffer.add(part, 5.0)]
    first = min(lost)
    assert heard == said[:first]
    assert not buffer.over
    assert buffer.missing == (first if any(one.chunk_id > first for one in left) else None)
    for number in sorted(lost):
        heard += buffer.add(said[number], 6.0)
    assert heard == said


@given(data=st.data(), first=st.integers(1, 15), second=st.integers(2, 15))
@settings(max_examples=200, deadline=None)
def test_two_attempts_are_never_mixed(data: st.DataObject, first: int, second: int) -> None:
    """However the words of a worker that was believed dead and those of the next one come through one another."""
    old = [one for one in answer(first + 1) if not one.is_final]
    new = answer(second, attempt=2)
    buffer = Reorder()
    heard = [one for part in data.draw(st.permutations(old + new)) for one in buffer.add(part, 0.0)]
    begins = [index for index, one in enumerate(heard) if is_restart(one)]
    assert begins in ([0], [*range(len(heard) - second, len(heard) - second + 1)])
    assert heard[begins[0] :] == new
    assert heard[: begins[0]] == old[: begins[0]]


def test_what_is_farthest_ahead_goes_when_there_is_no_room() -> None:
    buffer = Reorder(max_ahead=3)
    for number in (5, 2, 9, 3, 7):
        assert buffer.add(chunk(number), 0.0) == []
    assert buffer.waiting == 3
    assert [one.chunk_id for number in (0, 1) for one in buffer.add(chunk(number), 0.0)] == [0, 1, 2, 3]
    assert buffer.missing == 4
    long = Reorder(max_bytes=1000)
    for number in range(2, 12):
        long.add(chunk(number, "y" * 100), 0.0)
    assert long.waiting == 3


def test_the_time_of_waiting_begins_with_the_gap_and_ends_with_it() -> None:
    buffer = Reorder()
    buffer.add(chunk(1), 100.0)
    assert buffer.waited(129.0) == 29.0
    assert buffer.waited(90.0) == 0.0  # a clock that was set back
    buffer.add(chunk(3), 110.0)
    assert buffer.waited(130.0) == 30.0
    buffer.add(chunk(0), 130.0)
    assert buffer.missing == 2
    assert buffer.waited(135.0) == 5.0
    buffer.add(chunk(2), 140.0)
    assert buffer.waited(500.0) == 0.0


def test_nothing_comes_after_the_end_but_a_later_attempt() -> None:
    buffer = Reorder()
    assert len(buffer.add(chunk(0, final=True), 0.0)) == 1
    assert buffer.add(chunk(1), 0.0) == []
    assert [one.chunk_id for part in answer(3, attempt=2) for one in buffer.add(part, 0.0)] == [
        ATTEMPT,
        ATTEMPT + 1,
        ATTEMPT + 2,
    ]
