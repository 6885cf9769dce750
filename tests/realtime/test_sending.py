"""One phone's connection: sent at once where nothing is in the way, and a phone that does not read waits alone."""

import asyncio
from typing import Any

import pytest

from nebengjek.clock import ManualClock
from nebengjek.errors import Unavailable
from nebengjek.realtime import delivery
from nebengjek.realtime.delivery import (
    MAX_ANSWERS,
    MAX_SHOWN,
    SLOW_PHONE,
    START_ANEW,
    TOKEN_ENDED,
    TRY_AGAIN,
    Connection,
)
from nebengjek.realtime.eager import begin
from nebengjek.realtime.mailbox import Frame, Mailbox, MemoryMailbox
from nebengjek.tokens import Identity


class Socket:
    """ASGI's ``send`` of a phone that reads when it likes."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.broken = False

    async def send(self, message: dict[str, Any]) -> None:
        if "code" not in message:
            await self.reads.wait()
        if self.broken:
            raise OSError
        self.said.append(message.get("text", message.get("code")))

    async def until(self, count: int) -> list[Any]:
        async def wait() -> None:
            while len(self.said) < count:  # noqa: ASYNC110 - turns of the loop are what is waited for
                await asyncio.sleep(0)

        await asyncio.wait_for(wait(), 5)
        return self.said


async def connect(socket: Socket, mailbox: Mailbox | None = None, epoch: str | None = None) -> Connection:
    clock = ManualClock()
    who = Identity(user_id="u", role="driver", session_id="s", expires_at=clock.now())
    mailbox = mailbox or MemoryMailbox(clock)
    return Connection("c", who, mailbox, epoch or (await mailbox.head("u")).epoch, 0, socket.send)


async def test_nothing_is_sent_before_it_is_open() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.show("a", b"later")
    connection.answer(b"first")
    assert socket.said == []
    connection.open()
    assert socket.said == ["first", "later"]


async def test_what_a_phone_takes_is_sent_within_the_call() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    connection.show("a", b"1")
    connection.answer(b"2")
    assert socket.said == ["1", "2"]


async def test_a_phone_that_does_not_read_gets_the_newest_of_each_kind_and_every_answer() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    socket.reads.clear()
    for n in range(5):
        connection.show("a", b"a%d" % n)
        connection.answer(b"answer %d" % n)
    connection.show("b", b"b")
    socket.reads.set()
    assert await socket.until(8) == ["a0", *(f"answer {n}" for n in range(5)), "a4", "b"]


async def test_too_many_answers_close_a_phone_that_does_not_read() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    socket.reads.clear()
    for _ in range(MAX_ANSWERS + 1):
        connection.answer(b"x")
    assert (connection.close_code, connection.waiting) == (None, MAX_ANSWERS)
    connection.answer(b"one too many")
    connection.answer(b"after the end")
    connection.show("after the end", b"")
    connection.ring()
    # It need not read for that: the close waits for nothing.
    assert await socket.until(1) == [SLOW_PHONE]
    assert connection.waiting == 0


async def test_of_too_many_kinds_the_oldest_is_left_out() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    socket.reads.clear()
    connection.answer(b"first")
    for n in range(MAX_SHOWN + 1):
        connection.show(f"kind {n}", b"%d" % n)
    socket.reads.set()
    assert await socket.until(MAX_SHOWN + 1) == ["first", *map(str, range(1, MAX_SHOWN + 1))]


async def test_who_takes_nothing_is_cut_off_when_patience_ends_and_who_takes_little_is_not() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    connection.look(0, 20)
    socket.reads.clear()
    for n in range(3):
        connection.answer(b"%d" % n)
    for now in (100, 119):
        connection.look(now, 20)
    # One frame is taken, the next one waits.
    socket.reads.set()
    await socket.until(1)
    socket.reads.clear()
    connection.answer(b"more")
    await socket.until(3)
    for now in (120, 139):
        connection.look(now, 20)
    assert connection.close_code is None
    connection.look(140, 20)
    assert (await socket.until(4))[-1] == SLOW_PHONE
    assert "more" not in socket.said


async def test_a_token_that_ends_does_not_wait_for_a_phone_that_does_not_read() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    socket.reads.clear()
    connection.answer(b"1")
    connection.close(TOKEN_ENDED)
    connection.look(0, 20)
    connection.look(20, 20)
    assert await socket.until(1) == [TOKEN_ENDED]


async def test_the_mailbox_is_read_when_the_bell_rings_once_each() -> None:
    socket, mailbox = Socket(), MemoryMailbox(ManualClock())
    connection = await connect(socket, mailbox)
    connection.open()
    for n in range(3):
        await mailbox.append("u", f"m{n}", "e", b"{}")
        connection.ring()
    said = await socket.until(3)
    assert [f'"seq":{n}' in text for n, text in enumerate(said, 1)] == [True] * 3
    assert connection.last_seq == 3


async def test_after_a_close_nothing_is_sent() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    connection.close(4401)
    connection.close(4408)
    connection.show("a", b"too late")
    assert socket.said == [4401]


async def test_a_socket_that_dies_under_a_send_is_no_error() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    socket.broken = True
    connection.show("a", b"1")
    connection.close(4401)
    await connection.end()
    assert socket.said == []


class Broken(MemoryMailbox):
    async def after(self, user_id: str, seq: int, epoch: str, at_most: int = 1000) -> list[Frame]:
        raise ValueError("nobody thought of this")


async def test_a_fault_of_ours_closes_the_phone_to_try_again() -> None:
    socket = Socket()
    connection = await connect(socket, Broken(ManualClock()))
    connection.open()
    connection.ring()
    assert await socket.until(1) == [TRY_AGAIN]


class Flaky(MemoryMailbox):
    """Does not answer ``failures`` times."""

    failures = 2

    async def after(self, user_id: str, seq: int, epoch: str, at_most: int = 1000) -> list[Frame]:
        if self.failures:
            self.failures -= 1
            raise Unavailable("redis")
        return await super().after(user_id, seq, epoch, at_most)


async def test_a_mailbox_that_is_away_is_asked_again_and_answers_go_on_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "RING_AGAIN", 0.01)
    socket, mailbox = Socket(), Flaky(ManualClock())
    connection = await connect(socket, mailbox)
    connection.open()
    await mailbox.append("u", "m1", "ride.pickup", b"{}")
    connection.ring()
    connection.answer(b"first")
    assert await socket.until(2) == ["first", '{"event":"ride.pickup","data":{},"seq":1}']
    assert mailbox.failures == 0


async def test_a_phone_whose_mailbox_has_forgotten_is_told_to_begin_anew() -> None:
    socket, mailbox = Socket(), MemoryMailbox(ManualClock())
    connection = await connect(socket, mailbox, "an epoch of before")
    await mailbox.append("u", "m1", "ride.pickup", b"{}")
    connection.open()
    connection.ring()
    assert await socket.until(1) == [START_ANEW]


async def test_an_end_does_not_wait_for_the_phone() -> None:
    socket = Socket()
    connection = await connect(socket)
    connection.open()
    socket.reads.clear()
    connection.show("a", b"1")
    await asyncio.wait_for(connection.end(), 5)
    assert socket.said == []


async def test_what_was_begun_goes_on_where_it_waits_and_hears_what_comes_of_it() -> None:
    steps: list[str] = []
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    second: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        steps.append("begun")
        steps.append(await first)
        await asyncio.sleep(0)
        try:
            await second
        except ValueError as error:
            steps.append(str(error))

    task = begin(work())
    assert task is not None
    assert steps == ["begun"]
    first.set_result("first")
    second.set_exception(ValueError("second"))
    await asyncio.wait_for(task, 5)
    assert steps == ["begun", "first", "second"]


async def test_what_was_begun_can_be_cancelled() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    task = begin(work())
    assert task is not None
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    assert ended.is_set()
