"""Questions and answers between modules: typed, also where they fail (J1, J2, J4, J5)."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from nebengjek.bus.errors import NoResponders, RequestTimeout
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.queries import RemoteError
from nebengjek.bus.specs import StreamSpec
from nebengjek.contracts.message import Query
from nebengjek.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NebengJekError,
    NotFound,
    RateLimited,
    Rejected,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from nebengjek.module import Module, answer
from tests.bus.stage import SPECS, Double, Stage
from tests.lateness import at_most


class Words(Query[list[str]], frozen=True, kw_only=True, tag="maths.words"):
    count: int


async def asker_and_answerer(stage: Stage, handler: Any) -> MessageBus:
    """Two processes; the asker's bus."""
    await stage.process(Module(name="maths", answers=[answer(Double, handler)]))
    return await stage.process()


async def test_the_answer_is_typed(stage: Stage) -> None:
    async def double(query: Double) -> int:
        return 2 * query.n

    bus = await asker_and_answerer(stage, double)
    assert await bus.request(Double(n=21)) == 42


ERRORS: Sequence[NebengJekError] = [
    Invalid("a b", code="BAD_NUMBER"),
    Unauthenticated("who?"),
    Forbidden("not you"),
    NotFound("gone"),
    Conflict("a match or ride is under way", code="PAYMENT_DUE"),
    TooLarge("much"),
    RateLimited("slowly", retry_after=3),
    Rejected("no", code="SOMETHING"),
    Unavailable("gateway", "the gateway sleeps"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_what_the_handler_refuses_the_asker_is_refused(stage: Stage, error: NebengJekError) -> None:
    async def refuse(query: Double) -> int:
        raise error

    bus = await asker_and_answerer(stage, refuse)
    with pytest.raises(type(error)) as refused:
        await bus.request(Double(n=1))
    assert type(refused.value) is type(error)
    assert str(refused.value) == str(error)
    if isinstance(error, Rejected):
        assert isinstance(refused.value, Rejected)
        assert refused.value.code == error.code


async def test_a_kind_of_conflict_is_a_conflict_at_the_asker(stage: Stage) -> None:
    class TooFar(Conflict):
        code = "TOO_FAR"

    async def refuse(query: Double) -> int:
        raise TooFar("400 m away")

    bus = await asker_and_answerer(stage, refuse)
    with pytest.raises(Conflict, match="400 m away") as refused:
        await bus.request(Double(n=1))
    assert refused.value.code == "TOO_FAR"


@pytest.mark.parametrize("text", ["line\nbreak", "é" * 600, "x" * 499 + " y", ""])
async def test_whatever_the_error_says_it_arrives(memory_stage: Stage, text: str) -> None:
    async def refuse(query: Double) -> int:
        raise Conflict(text)

    bus = await asker_and_answerer(memory_stage, refuse)
    with pytest.raises(Conflict):
        await bus.request(Double(n=1), timeout=0.5)


async def test_a_fault_is_a_remote_error_that_tells_no_secrets(stage: Stage) -> None:
    async def fail(query: Double) -> int:
        raise ValueError("+62811123456")

    bus = await asker_and_answerer(stage, fail)
    with pytest.raises(RemoteError) as failed:
        await bus.request(Double(n=1))
    assert failed.value.code == "INTERNAL"
    assert "62811" not in str(failed.value)


async def test_nobody_there_is_said_at_once(stage: Stage) -> None:
    bus = await stage.process()
    async with at_most(0.2):
        with pytest.raises(NoResponders):
            await bus.request(Double(n=1), timeout=5.0)


async def test_too_slow_is_a_timeout_and_the_late_answer_harms_nobody(stage: Stage) -> None:
    go = asyncio.Event()

    async def slow(query: Double) -> int:
        if query.n == 1:
            await go.wait()
        return 2 * query.n

    bus = await asker_and_answerer(stage, slow)
    with pytest.raises(RequestTimeout):
        await bus.request(Double(n=1), timeout=0.1)
    go.set()
    # A slow question does not hold up the next one, and its answer is nobody else's.
    assert await bus.request(Double(n=5), timeout=2.0) == 10


async def test_many_questions_at_once_are_shared_and_each_gets_its_own_answer(stage: Stage) -> None:
    answered: dict[str, int] = {"a": 0, "b": 0}

    def handler(name: str) -> Any:
        async def double(query: Double) -> int:
            answered[name] += 1
            await asyncio.sleep(0.001)
            return 2 * query.n

        return double

    for name in answered:
        await stage.process(Module(name="maths", answers=[answer(Double, handler(name))]))
    bus = await stage.process()
    assert await asyncio.gather(*(bus.request(Double(n=n)) for n in range(60))) == [2 * n for n in range(60)]
    assert sum(answered.values()) == 60
    assert all(answered.values())


async def test_a_question_that_cannot_be_read_is_invalid(stage: Stage) -> None:
    async def double(query: Double) -> int:
        return 2 * query.n

    bus = await asker_and_answerer(stage, double)
    with pytest.raises(Invalid):
        await bus.request(Double(n="one"))  # type: ignore[arg-type]


async def test_an_answer_that_cannot_be_read_is_a_remote_error(stage: Stage) -> None:
    async def words(query: Double) -> Any:
        return ["two"]

    bus = await asker_and_answerer(stage, words)
    with pytest.raises(RemoteError) as failed:
        await bus.request(Double(n=1))
    assert failed.value.code == "UNDECODABLE"


async def test_an_answer_that_is_too_long_for_the_server_is_a_timeout_not_a_crash(stage: Stage) -> None:
    async def words(query: Words) -> list[str]:
        return ["x" * 1024] * query.count

    await stage.process(Module(name="maths", answers=[answer(Words, words)]))
    bus = await stage.process()
    with pytest.raises(RequestTimeout):
        await bus.request(Words(count=1100), timeout=0.3)
    assert await bus.request(Words(count=1), timeout=2.0) == ["x" * 1024]


async def test_a_question_may_not_lie_inside_a_stream(memory_stage: Stage) -> None:
    async def double(query: Double) -> int:
        return 2 * query.n

    everything = StreamSpec(name="RPC", subjects=("rpc.>",))
    with pytest.raises(ValueError, match=r"rpc\.maths\.double"):
        memory_stage.new_bus(Module(name="maths", answers=[answer(Double, double)]), specs=(*SPECS, everything))
