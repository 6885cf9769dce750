"""Codes leave through an HTTP gateway; when it does not take them, nothing private is said about it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nebengjek.errors import Unavailable
from nebengjek.users.sms import HttpSms

PHONE, TEXT = "+6281234567890", "Your code is 123456"


@asynccontextmanager
async def gateway(status: str, received: list[bytes]) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        received.extend([head, await reader.readexactly(length)])
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/send"


def sms(url: str) -> HttpSms:
    return HttpSms(url, token="gateway-token", sender="NebengJek", timeout=5)


async def test_a_text_is_handed_to_the_gateway() -> None:
    received: list[bytes] = []
    async with gateway("202 Accepted", received) as url:
        await sms(url).send(PHONE, TEXT)
    head, body = received
    assert head.startswith(b"POST /send ")
    assert b"authorization: bearer gateway-token" in head.lower()
    assert json.loads(body) == {"to": PHONE, "text": TEXT, "sender": "NebengJek"}


async def test_a_gateway_that_refuses_is_unavailable() -> None:
    async with gateway("500 Broken", []) as url:
        with pytest.raises(Unavailable, match="says 500") as caught:
            await sms(url).send(PHONE, TEXT)
    assert caught.value.dependency == "sms"


async def test_a_gateway_that_is_away_is_unavailable_and_nothing_private_is_said() -> None:
    async with gateway("200 OK", []) as url:
        pass
    with pytest.raises(Unavailable) as caught:
        await sms(url).send(PHONE, TEXT)
    assert PHONE not in str(caught.value)
    assert caught.value.__cause__ is None
