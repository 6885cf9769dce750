"""One-time codes through the queue: nobody waits for the gateway, none is sent too late, no letter shows one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Struct

from nebengjek.contracts.message import Event
from nebengjek.errors import Misconfigured
from nebengjek.module import Module, SmsQueue
from tests.flows.conftest import Backend
from tests.flows.world import Phone, World
from tests.plugins.test_notifications_mail import dead, letters, plugged, post_office

WAIT = 60.0
NUMBER = "+6281234567890"


class Gateway:
    """An SMS gateway: what it took, how it answers, and whether it answers at all."""

    def __init__(self) -> None:
        self.texts: list[dict[str, Any]] = []
        self.asked = 0
        self.status = "202 Accepted"
        self.answering = asyncio.Event()
        self.answering.set()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        text = json.loads(await reader.readexactly(length))
        self.asked += 1
        await self.answering.wait()
        if self.status.startswith("2"):
            self.texts.append(text)
        writer.write(f"HTTP/1.1 {self.status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()

    async def asked_for(self, times: int) -> None:
        async with asyncio.timeout(WAIT):
            while self.asked < times:  # noqa: ASYNC110 - it is counted, it does not tell
                await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    found = Gateway()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/send"
        yield found


async def code_for(world: World, number: str = NUMBER) -> str:
    answer = await world.http.post("/auth/otp/generate", json={"msisdn": number})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["otp"])


async def test_who_asks_for_a_code_does_not_wait_for_the_gateway_and_no_mail_does(backend: Backend) -> None:
    async with (
        post_office() as post,
        gateway() as sms,
        backend.own_world(**plugged(post), sms__url=sms.url, sms__timeout=60.0) as world,
    ):
        sms.answering.clear()
        code = await code_for(world)
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        async with asyncio.timeout(WAIT):
            await post.came.wait()
        assert sms.texts == []
        sms.answering.set()
        await world.quiet()
        (text,) = [text for text in sms.texts if text["to"] == NUMBER]
        assert code in text["text"]
        taken = await world.http.post("/auth/otp/verify", json={"msisdn": NUMBER, "otp": code})
        assert taken.status_code == 200


async def test_a_code_that_the_gateway_refused_is_sent_again_and_once_unless_a_newer_was_asked_for(
    backend: Backend,
) -> None:
    async with (
        post_office() as post,
        gateway() as sms,
        backend.own_world(**plugged(post), sms__url=sms.url) as world,
    ):
        sms.status = "503 Later"
        old = await code_for(world)
        await sms.asked_for(1)
        code = await code_for(world)
        # Both wait by now, and only one is good.
        sms.status = "202 Accepted"
        await world.quiet()
        assert [text["text"] for text in sms.texts] == [f"NebengJek: {code}"] != [f"NebengJek: {old}"]
        assert await letters(world) == []


async def test_a_code_out_of_date_is_not_sent_and_its_letter_does_not_say_it(backend: Backend) -> None:
    async with (
        post_office() as post,
        gateway() as sms,
        backend.own_world(**plugged(post), sms__url=sms.url) as world,
    ):
        sms.status = "503 Later"
        code = await code_for(world)
        await sms.asked_for(1)
        world.clock.advance(301)
        sms.status = "202 Accepted"
        letter = await dead(world)
        assert letter["consumer"] == "notification_sms_notifications_sms"
        key = {"X-API-Key": world.app.settings.admin.api_key}
        whole = (await world.http.get(f"/admin/dead-letters/{letter['seq']}", headers=key)).text
        assert "notification.sms" in whole
        assert code not in whole
        assert NUMBER not in whole
        await world.http.post(f"/admin/dead-letters/{letter['seq']}/replay", headers=key)
        await world.quiet()
        assert sms.texts == []


class Nobody(Struct):
    async def send(self, msisdn: str, text: str, topic: str | None = None) -> None:
        raise AssertionError


class Said(Event, frozen=True, kw_only=True, tag="test.said"):
    """Never said."""


def first() -> Module:
    return Module(name="first", sms=SmsQueue(sender=Nobody(), event=Said))


def second() -> Module:
    return Module(name="second", sms=SmsQueue(sender=Nobody(), event=Said))


async def test_two_plugins_that_carry_codes_refuse_to_start(embedded: Backend) -> None:
    with pytest.raises(Misconfigured, match="first, second"):
        async with embedded.own_world(plugins=[f"{__name__}:first", f"{__name__}:second"]):
            pass
