"""Readers of server-sent events, as browsers and phones are."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from tests.flows.world import WAIT, Phone


@dataclass
class Heard:
    """An event of a stream."""

    event: str
    id: str
    data: Any


@dataclass
class Reader:
    """What one connection to a stream has heard."""

    heard: list[Heard] = field(default_factory=list)
    comments: int = 0
    ended: bool = False
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def find(self, wanted: Callable[[Heard], bool], *, patience: float = 3 * WAIT) -> Heard:
        """The first event that is wanted; waits for it."""
        try:
            async with asyncio.timeout(patience), self._news:
                looked = 0
                while True:
                    while looked < len(self.heard):
                        if wanted(self.heard[looked]):
                            return self.heard[looked]
                        looked += 1
                    if self.ended:
                        raise AssertionError(f"the stream ended: {self.heard}")
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not among {self.heard}") from None

    async def expect(self, event: str, **fields: Any) -> Heard:
        return await self.find(
            lambda one: one.event == event and all(one.data.get(key) == value for key, value in fields.items())
        )

    async def pinged(self) -> None:
        async with asyncio.timeout(WAIT), self._news:
            await self._news.wait_for(lambda: self.comments > 0)

    async def over(self) -> None:
        """The server ended it."""
        async with asyncio.timeout(3 * WAIT), self._news:
            await self._news.wait_for(lambda: self.ended)

    def of(self, event: str) -> list[Any]:
        return [one.data for one in self.heard if one.event == event]

    def text(self, message_id: str) -> str:
        """The chunks of an answer as a phone shows them: a restart begins anew."""
        text = ""
        for chunk in self.of("chunk"):
            if chunk["message_id"] == message_id:
                text = "" if chunk["chunk_type"] == "system" else text + chunk["chunk"]
        return text

    @property
    def last_id(self) -> str:
        return self.heard[-1].id

    async def read(self, response: httpx.Response) -> None:
        with suppress(httpx.HTTPError):
            await self._read(response)
        async with self._news:
            self.ended = True
            self._news.notify_all()

    async def _read(self, response: httpx.Response) -> None:
        event, number, data = "message", "", ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    async with self._news:
                        self.heard.append(Heard(event, number, msgspec.json.decode(data)))
                        self._news.notify_all()
                event, data = "message", ""
            elif not name:
                async with self._news:
                    self.comments += 1
                    self._news.notify_all()
            elif name == "event":
                event = value
            elif name == "id":
                number = value
            elif name == "data":
                data += value


@asynccontextmanager
async def reading(
    phone: Phone, session_id: str, *, last_event_id: str | None = None, url: str | None = None
) -> AsyncIterator[Reader]:
    """A connection to a session's stream, there when ``connected`` was heard."""
    headers = phone.bearer | ({"Last-Event-ID": last_event_id} if last_event_id is not None else {})
    base = url or phone.world.url
    async with (
        httpx.AsyncClient(timeout=None) as http,
        http.stream("GET", f"{base}/chat/{session_id}/stream", headers=headers) as response,
    ):
        assert response.status_code == 200, await response.aread()
        reader = Reader()
        task = asyncio.create_task(reader.read(response))
        try:
            await reader.expect("connected")
            yield reader
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
