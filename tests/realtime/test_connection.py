"""One socket's sender: what it does when its mailbox is away, or has forgotten."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from nebengjek.clock import ManualClock
from nebengjek.errors import Unavailable
from nebengjek.realtime import delivery
from nebengjek.realtime.delivery import START_ANEW, Connection
from nebengjek.realtime.mailbox import Frame, MemoryMailbox
from nebengjek.tokens import Identity

ME = Identity(user_id="u1", role="driver", session_id="s1", expires_at=datetime.now(UTC) + timedelta(days=1))


class Flaky(MemoryMailbox):
    """Does not answer ``failures`` times."""

    failures = 0

    async def after(self, user_id: str, seq: int, epoch: str) -> list[Frame]:
        if self.failures:
            self.failures -= 1
            raise Unavailable("redis")
        return await super().after(user_id, seq, epoch)


async def test_a_mailbox_that_is_away_is_asked_again_and_answers_go_on_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "RING_AGAIN", 0.01)
    mailbox = Flaky(ManualClock())
    mailbox.failures = 2
    connection = Connection("c1", ME, mailbox, (await mailbox.head("u1")).epoch, 0)
    sent: asyncio.Queue[str] = asyncio.Queue()
    sending = asyncio.create_task(connection.send_all(sent.put))
    await mailbox.append("u1", "m1", "ride.pickup", b"{}")
    connection.ring()
    connection.answer(b"first")
    async with asyncio.timeout(5):
        assert await sent.get() == "first"
        assert await sent.get() == '{"event":"ride.pickup","data":{},"seq":1}'
    assert mailbox.failures == 0
    connection.close(1012)
    await sending


async def test_a_phone_whose_mailbox_has_forgotten_is_told_to_begin_anew() -> None:
    mailbox = MemoryMailbox(ManualClock())
    connection = Connection("c1", ME, mailbox, "an epoch of before", 7)
    await mailbox.append("u1", "m1", "ride.pickup", b"{}")
    connection.ring()
    sent: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.timeout(5):
        await connection.send_all(sent.put)
    assert connection.close_code == START_ANEW
    assert sent.empty()
