"""People for benchmarks: logged in, connected by a cheap socket, able to say a frame and wait for another."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

import httpx

from benchmarks.wire import Child, RawSocket, client_frame, login, open_socket

Frame = dict[str, Any]


class Person:
    """``say`` awaits the ack; ``hear`` awaits the next frame that is wanted."""

    def __init__(self, user_id: str, token: str) -> None:
        self.user_id = user_id
        self.token = token
        self.socket: RawSocket | None = None
        self._wanted: list[tuple[Callable[[Frame], bool], asyncio.Future[Frame]]] = []
        self._number = 0

    @classmethod
    async def login(cls, http: httpx.AsyncClient, number: int, *, driver: bool) -> Self:
        return cls(*await login(http, number, driver=driver))

    async def connect(self, server: Child) -> None:
        ready = self.expect(lambda frame: frame["event"] == "session.ready")
        self.socket = await open_socket(server.port, "/ws", self.token, self._text)
        await ready

    def _text(self, _: RawSocket, text: bytes) -> None:
        if not self._wanted:
            return
        frame = json.loads(text)
        for entry in list(self._wanted):
            wanted, future = entry
            if wanted(frame):
                self._wanted.remove(entry)
                if not future.done():
                    future.set_result(frame)

    def expect(self, wanted: Callable[[Frame], bool]) -> asyncio.Future[Frame]:
        """A future of the next such frame; make it before you cause the frame."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._wanted.append((wanted, future))
        return future

    def tell(self, event: str, data: Frame, frame_id: str | None = None) -> None:
        assert self.socket is not None
        frame = {"event": event, "data": data} | ({"id": frame_id} if frame_id else {})
        self.socket.send(client_frame(json.dumps(frame).encode()))

    async def say(self, event: str, data: Frame) -> Frame:
        """The data of the ack. Raises RuntimeError with the refusal."""
        self._number += 1
        frame_id = f"{self.user_id}-{self._number}"
        answer = self.expect(lambda frame: frame["data"].get("id") == frame_id and frame["event"] in ("ack", "error"))
        self.tell(event, data, frame_id)
        frame = await asyncio.wait_for(answer, 60)
        if frame["event"] == "error":
            raise RuntimeError(f"{event}: {frame['data']}")
        data_of: Frame = frame["data"]
        return data_of


async def crowd(server: Child, first: int, count: int, *, driver: bool) -> list[Person]:
    """``count`` people, logged in and connected, sixteen at a time."""
    limit = asyncio.Semaphore(16)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as http:

        async def one(number: int) -> Person:
            async with limit:
                person = await Person.login(http, number, driver=driver)
                await person.connect(server)
                return person

        return list(await asyncio.gather(*(one(first + n) for n in range(count))))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
