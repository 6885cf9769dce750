"""One-time codes: few, short-lived, used once, never kept or shown in clear."""

import asyncio
import re
import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from nebengjek.clock import ManualClock
from nebengjek.errors import RateLimited, Unauthenticated, Unavailable
from nebengjek.faststate import MemoryFastState
from nebengjek.users.otp import ConsoleSms, Otp
from nebengjek.users.sms import HttpSms

PHONE, OTHER, ADDRESS = "+628111234567", "+628111234568", "10.0.0.7"


class Inbox:
    """The phones of everybody."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.broken = False

    async def send(self, msisdn: str, text: str, topic: str | None = None) -> None:
        if self.broken:
            raise Unavailable("sms")
        self.texts.append((msisdn, text))

    def code(self) -> str:
        found = re.search(r"\d{6}", self.texts[-1][1])
        assert found is not None
        return found[0]


class Desk:
    """Who sends and checks codes; ``options`` as in ``Otp``."""

    def __init__(self, **options: float) -> None:
        self.clock = ManualClock()
        self.state = MemoryFastState(self.clock)
        self.inbox = Inbox()
        given: dict[str, float] = {"per_address": 0} | options
        self.otp = Otp(self.state, self.inbox, "a secret of at least 32 bytes, or so", **given)  # type: ignore[arg-type]

    async def send(self, phone: str = PHONE) -> str:
        await self.otp.generate(phone, ADDRESS)
        return self.inbox.code()

    async def refused(self, code: str, phone: str = PHONE) -> str:
        """The code with which it is refused."""
        with pytest.raises(Unauthenticated) as refused:
            await self.otp.verify(phone, code)
        return refused.value.code


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[EventDict]]:
    with capture_logs() as entries:
        yield entries


async def test_the_code_that_was_sent_is_accepted_once() -> None:
    desk = Desk()
    code = await desk.send()
    assert re.fullmatch(r"[0-9]{6}", code)
    assert desk.inbox.texts[0][0] == PHONE
    await desk.otp.verify(PHONE, code)
    assert await desk.refused(code) == "OTP_EXPIRED"


async def test_no_code_is_like_the_one_before() -> None:
    desk = Desk(requests=1000)
    codes = [await desk.send() for _ in range(200)]
    assert len(set(codes)) > 190


async def test_five_wrong_tries_kill_it() -> None:
    desk = Desk()
    code = await desk.send()
    for _ in range(5):
        assert await desk.refused(wrong(code)) == "OTP_INVALID"
    assert await desk.refused(code) == "OTP_EXPIRED"


async def test_the_fifth_try_may_be_the_right_one() -> None:
    desk = Desk()
    code = await desk.send()
    for _ in range(4):
        await desk.refused(wrong(code))
    await desk.otp.verify(PHONE, code)


async def test_many_guesses_at_once_are_no_more_than_five() -> None:
    desk = Desk()
    code = await desk.send()
    guesses = [f"{n:06d}" for n in range(300) if f"{n:06d}" != code]
    answers = await asyncio.gather(
        *(desk.otp.verify(PHONE, guess) for guess in [*guesses, code]), return_exceptions=True
    )
    refusals = [answer.code for answer in answers if isinstance(answer, Unauthenticated)]
    assert len(refusals) == len(answers), "the right one came after too many wrong ones"
    assert refusals.count("OTP_INVALID") <= 5


async def test_a_new_code_has_its_own_tries_and_ends_the_old_one() -> None:
    desk = Desk()
    first = await desk.send()
    for _ in range(4):
        await desk.refused(wrong(first))
    second = await desk.send()
    while second == first:
        second = await desk.send()
    assert await desk.refused(first) == "OTP_INVALID"
    await desk.otp.verify(PHONE, second)


async def test_two_phones_with_the_right_code_one_comes_in() -> None:
    for _ in range(50):
        desk = Desk()
        code = await desk.send()
        answers = await asyncio.gather(*(desk.otp.verify(PHONE, code) for _ in range(2)), return_exceptions=True)
        assert [type(answer) for answer in answers if answer is not None] == [Unauthenticated]


async def test_after_five_minutes_it_is_too_old() -> None:
    desk = Desk()
    code = await desk.send()
    desk.clock.advance(299)
    await desk.otp.verify(PHONE, code)
    code = await desk.send()
    desk.clock.advance(301)
    assert await desk.refused(code) == "OTP_EXPIRED"


async def test_a_code_is_for_one_number() -> None:
    desk = Desk()
    code = await desk.send(PHONE)
    other = await desk.send(OTHER)
    if code != other:
        assert await desk.refused(code, OTHER) == "OTP_INVALID"
    await desk.otp.verify(PHONE, code)


@pytest.mark.parametrize("guess", ["", "12345", "1234567", "abcdef", "١٢٣٤٥٦", "\x00", "123456 "])
async def test_whatever_is_guessed_it_is_refused(guess: str) -> None:
    desk = Desk()
    code = await desk.send()
    if guess.strip() != code:
        assert await desk.refused(guess) == "OTP_INVALID"


async def test_without_a_code_there_is_nothing_to_guess() -> None:
    assert await Desk().refused("123456") == "OTP_EXPIRED"


async def test_three_codes_a_quarter_of_an_hour() -> None:
    desk = Desk()
    for _ in range(3):
        await desk.send()
    desk.clock.advance(300)
    with pytest.raises(RateLimited) as limited:
        await desk.send()
    assert limited.value.retry_after == pytest.approx(600)
    # Somebody else is not concerned, and asking again does not make it longer.
    await desk.send(OTHER)
    desk.clock.advance(limited.value.retry_after + 1)
    await desk.send()
    assert len(desk.inbox.texts) == 5


async def test_so_many_codes_an_address_a_minute() -> None:
    desk = Desk(per_address=10)
    for n in range(10):
        await desk.otp.generate(f"+62811000000{n}", ADDRESS)
    with pytest.raises(RateLimited) as limited:
        await desk.otp.generate(PHONE, ADDRESS)
    assert 0 < limited.value.retry_after <= 60
    await desk.otp.generate(PHONE, "10.0.0.8")
    desk.clock.advance(61)
    await desk.otp.generate(PHONE, ADDRESS)


async def test_nothing_is_kept_in_clear_and_nothing_is_logged(logged: list[EventDict]) -> None:
    desk = Desk()
    code = await desk.send()
    await desk.refused(wrong(code))
    kept = repr(desk.state._kept)
    assert desk.state._kept
    for secret in (code, wrong(code), PHONE, PHONE[1:], PHONE[3:]):
        assert secret not in kept
        assert secret not in str(logged)


async def test_in_development_nobody_is_sent_anything_and_the_log_says_that(logged: list[EventDict]) -> None:
    await ConsoleSms().send(PHONE, "NebengJek: 123456")
    [entry] = logged
    assert entry["event"] == "sms.not_sent"
    assert "123456" not in str(entry)
    assert PHONE[3:] not in str(entry)


async def test_when_no_text_can_be_sent_the_caller_knows() -> None:
    desk = Desk()
    desk.inbox.broken = True
    with pytest.raises(Unavailable):
        await desk.send()
    desk.inbox.broken = False
    await desk.otp.verify(PHONE, await desk.send())


async def test_a_gateway_that_does_not_answer_in_time_is_unavailable() -> None:
    asleep = asyncio.Event()

    async def sleep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asleep.wait()
        writer.close()

    async with await asyncio.start_server(sleep, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        before = time.monotonic()
        with pytest.raises(Unavailable):
            await HttpSms(url, token=None, sender="NebengJek", timeout=0.1).send(PHONE, "NebengJek: 123456")
        assert time.monotonic() - before < 2.0
        asleep.set()
