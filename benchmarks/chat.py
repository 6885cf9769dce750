"""Chat: how soon the first words are read, how many chunks a second go through bus and stream, 500 readers at once.

Against the same assistant streamed directly by the ASGI server, in the same run: ``python -m benchmarks.chat``,
``--backend real`` for NATS, Valkey and PostgreSQL.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx

from benchmarks.people import percentile
from benchmarks.wire import Child, child, free_port, login, nebengjek
from tests.servers import nats_server, postgres_server, valkey_server

CHUNK, END = b"event: chunk\n", b"event: message_complete\n"
PLUGIN = {
    "NEBENGJEK__PLUGINS": "nebengjek_plugins.chat:chat",
    "NEBENGJEK__PLUGIN__CHAT__AI_PROVIDER": "custom",
    "NEBENGJEK__PLUGIN__CHAT__CUSTOM": "benchmarks.chat_assistant:Talker",
    "NEBENGJEK__PLUGIN__CHAT__MAX_ANSWER": "100000",
    "NEBENGJEK__PLUGIN__CHAT__MESSAGES_PER_MINUTE": "1000000",
    "NEBENGJEK__PLUGIN__CHAT__SESSIONS_PER_USER": "100000",
    "NEBENGJEK__PLUGIN__CHAT__READERS_PER_USER": "100000",
    "NEBENGJEK__PLUGIN__CHAT__TOKENS_PER_DAY": "0",
    "NEBENGJEK__PLUGIN__CHAT__HISTORY_TURNS": "0",
    "NEBENGJEK__PLUGIN__CHAT__CONCURRENCY": "600",
}


class Stream:
    """A reader that counts: times of the first and the last chunk of the present answer, and how many there were."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._rest = b""

    @classmethod
    async def connect(cls, port: int) -> "Stream":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @classmethod
    async def open(cls, port: int, path: str, token: str = "") -> "Stream":
        stream = await cls.connect(port)
        stream._writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        return stream

    async def post(self, path: str, token: str, body: bytes) -> None:
        """On this connection, which stays open; a pool of 500 that wait would take longer than the server does.

        Raises ConnectionError unless the answer is 202: with what was said instead.
        """
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        self._writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        size = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer += await self._reader.readexactly(size)
        if not answer.startswith(b"HTTP/1.1 202"):
            raise ConnectionError(answer.decode(errors="replace"))

    async def until(self, mark: bytes) -> None:
        while mark not in self._rest:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionError(self._rest.decode(errors="replace"))
            self._rest += data
        self._rest = self._rest.partition(mark)[2]

    async def answer(self) -> tuple[float, float, int]:
        """(first chunk, end, chunks), by the monotonic clock."""
        first, chunks, rest = 0.0, 0, self._rest
        while True:
            chunks += rest.count(CHUNK)
            if chunks and not first:
                first = time.perf_counter()
            if END in rest:
                self._rest = rest.partition(END)[2]
                return first, time.perf_counter(), chunks
            # A mark may lie across two reads.
            tail = rest[rest.rfind(b"\n", 0, -1) + 1 :] if rest else b""
            data = await self._reader.read(262_144)
            if not data:
                raise ConnectionError("the stream ended")
            rest = tail[-30:] + data if not tail.endswith(CHUNK) else data

    def close(self) -> None:
        self._writer.close()


Ask = Callable[[int, str], Awaitable[tuple[float, Stream]]]
"""``(number, question)``: the time at which it was asked, and the stream of the answer."""


async def _latency(ask: Ask, samples: int) -> dict[str, float]:
    taken = []
    for _ in range(samples):
        asked, stream = await ask(0, "5 0")
        taken.append((await stream.answer())[0] - asked)
    return {"first chunk p50 ms": 1000 * percentile(taken, 0.5), "p99 ms": 1000 * percentile(taken, 0.99)}


async def _rate(ask: Ask, chunks: int) -> dict[str, float]:
    _, stream = await ask(0, f"{chunks} 0")
    first, last, seen = await stream.answer()
    assert seen >= chunks, (seen, chunks)
    return {"chunks a second": seen / (last - first)}


async def _crowd(ask: Ask, readers: int, chunks: int) -> dict[str, float]:
    """All ask at once; each answer is as long as it would be if nothing took time."""
    begun = time.perf_counter()

    async def one(number: int) -> tuple[float, int]:
        asked, stream = await ask(number, f"{chunks} 0.05")
        first, _, seen = await stream.answer()
        return first - asked, seen

    found = await asyncio.gather(*(one(number) for number in range(readers)))
    took = time.perf_counter() - begun
    firsts = [first for first, _ in found]
    return {
        f"{readers} readers: first p50 ms": 1000 * percentile(firsts, 0.5),
        f"{readers} readers: first p99 ms": 1000 * percentile(firsts, 0.99),
        f"{readers} readers: chunks a second": sum(seen for _, seen in found) / took,
    }


async def _measure(ask: Ask, options: argparse.Namespace) -> dict[str, float]:
    return {
        **await _latency(ask, options.samples),
        **await _rate(ask, options.chunks),
        **await _crowd(ask, options.readers, options.words),
    }


async def _through_chat(server: Child, options: argparse.Namespace) -> dict[str, float]:
    base = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        _, token = await login(http, 1)
    # A phone each: one connection to read on, another to ask on.
    streams: list[Stream] = []
    askers: list[Stream] = []
    try:
        for number in range(options.readers):
            streams.append(await Stream.open(server.port, f"/chat/bench-{number}/stream", token))
            await streams[number].until(b"event: connected\n")
            askers.append(await Stream.connect(server.port))

        async def ask(number: int, question: str) -> tuple[float, Stream]:
            asked = time.perf_counter()
            body = json.dumps({"message": question}).encode()
            await askers[number].post(f"/chat/bench-{number}/messages", token, body)
            return asked, streams[number]

        return await _measure(ask, options)
    finally:
        for stream in [*streams, *askers]:
            stream.close()


async def _directly(server: Child, options: argparse.Namespace) -> dict[str, float]:
    async def ask(number: int, question: str) -> tuple[float, Stream]:
        asked = time.perf_counter()
        return asked, await Stream.open(server.port, "/" + question.replace(" ", "/"))

    return await _measure(ask, options)


@contextlib.contextmanager
def _servers(backend: str) -> Iterator[dict[str, str]]:
    if backend == "embedded":
        yield {}
        return
    with nats_server() as nats, valkey_server() as redis, postgres_server() as postgres:
        database = postgres.new_database()
        yield {"NATS_URL": nats.fresh_account(), "REDIS_URL": redis, "DATABASE_URL": database}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=("embedded", "real"), default="embedded")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=5000)
    parser.add_argument("--readers", type=int, default=500)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--json", help="write the figures there too")
    options = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.chat_assistant", "--port", str(port)]
    with child(command, port, ready=None) as peer:
        direct = asyncio.run(_directly(peer, options))
    with _servers(options.backend) as env, nebengjek(**PLUGIN, **env) as server:
        chat = asyncio.run(_through_chat(server, options))
    print(f"chat, {options.backend}" + " " * 30 + "chat    directly")
    for name, value in chat.items():
        print(f"{name:<38} {value:>10,.1f}  {direct[name]:>10,.1f}")
    result: dict[str, Any] = {"backend": options.backend, "chat": chat, "direct": direct}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
