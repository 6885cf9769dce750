"""A server that streams what a provider's API would: real HTTP on loopback, answers by the script of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

Event = tuple[str | None, Any] | asyncio.Event
"""Name and data of a server-sent event, or a gate that the server waits at."""


class Asked(msgspec.Struct):
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Provider:
    """``answers``: of each request in turn, a list of events, or a status with an error's body."""

    def __init__(self) -> None:
        self.answers: list[list[Event] | tuple[int, Any]] = []
        self.asked: list[Asked] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await self._head(reader):
                path, headers = head
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.asked.append(Asked(path, headers, msgspec.json.decode(body)))
                await self._answer(writer, self.answers.pop(0))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
        text = (await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"").decode()
        lines = text.split("\r\n")
        if len(lines) < 2:
            return None
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        return lines[0].split(" ")[1], headers

    @staticmethod
    async def _answer(writer: asyncio.StreamWriter, answer: list[Event] | tuple[int, Any]) -> None:
        if isinstance(answer, tuple):
            data = msgspec.json.encode(answer[1])
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (answer[0], len(data), data)
            )
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in answer:
            if isinstance(event, asyncio.Event):
                await event.wait()
                continue
            name, data = event
            text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
            sent = (f"event: {name}\n" if name else "") + f"data: {text}\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(sent.encode()), sent.encode()))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@asynccontextmanager
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()


# -- OpenAI's Chat Completions, streamed


def completion(delta: dict[str, Any] | None, *, finish: str | None = None, usage: int | None = None) -> Event:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    counted = {"prompt_tokens": usage - 1, "completion_tokens": 1, "total_tokens": usage} if usage else None
    return None, {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": "gpt-test",
        "choices": choices,
        "usage": counted,
    }


DONE: Event = (None, "[DONE]")


# -- Anthropic's Messages, streamed


def message_start(tokens: int) -> Event:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude-test",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": tokens, "output_tokens": 1},
    }
    return "message_start", {"type": "message_start", "message": message}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any] | asyncio.Event) -> list[Event]:
    events: list[Event] = [
        ("content_block_start", {"type": "content_block_start", "index": index, "content_block": content})
    ]
    for delta in deltas:
        if isinstance(delta, asyncio.Event):
            events.append(delta)
        else:
            data = {"type": "content_block_delta", "index": index, "delta": delta}
            events.append(("content_block_delta", data))
    return [*events, ("content_block_stop", {"type": "content_block_stop", "index": index})]


def message_end(reason: str, tokens: int) -> list[Event]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        ("message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": tokens}}),
        ("message_stop", {"type": "message_stop"}),
    ]
