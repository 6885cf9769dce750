"""Phones that read nothing, or late, or answer no ping: real TCP clients with small buffers, and everybody else."""

import asyncio
import json
import socket
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from nebengjek import sockets
from nebengjek.users import websocket
from tests.flows.conftest import Backend, Embedded
from tests.flows.world import WAIT, Phone, World

FRAMES = 300
PADDING = "x" * 2000
"""So many frames of that size are several times what the small buffers of both sides take."""


@asynccontextmanager
async def lazy(phone: Phone, query: str = "") -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    """A socket of ``phone`` that takes a few kilobytes, and its ``session.ready``; what nobody receives stays away."""
    world = phone.world
    port = world.server.servers[0].sockets[0].getsockname()[1]
    pipe = socket.socket()
    pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    pipe.setblocking(False)
    await asyncio.get_running_loop().sock_connect(pipe, ("127.0.0.1", port))
    headers = {"Authorization": f"Bearer {phone.token}"}
    url = world.url.replace("http", "ws") + "/ws" + query
    async with connect(
        url, sock=pipe, additional_headers=headers, compression=None, max_queue=1, ping_interval=None, close_timeout=0.2
    ) as peer:
        yield peer, json.loads(await peer.recv())["data"]


async def heard(peer: ClientConnection, last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """What it receives, up to the frame that is ``last``, or until it is closed."""
    frames: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT):
        while True:
            try:
                frame = json.loads(await peer.recv())
            except ConnectionClosed:
                return frames
            frames.append(frame)
            if last(frame):
                return frames


async def tell(world: World, phone: Phone, first: int, count: int) -> None:
    """Durable frames that a phone must not miss, and after each one that it may."""
    delivery = world.app.delivery
    for number in range(first, first + count):
        data = {"ride_id": str(number), "padding": PADDING}
        await delivery.deliver(phone.user_id, "ride.progress", data, message_id=f"{phone.user_id}-{number}")
        for ride in ("one", "two"):
            tracking = {"ride_id": ride, "number": number, "padding": PADDING}
            delivery.show(phone.user_id, "ride.tracking", tracking, about=ride)


async def until(holds: Callable[[], bool]) -> None:
    """Another task's work, and nothing tells when it is done."""
    async with asyncio.timeout(WAIT):
        while not holds():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.002)


async def stuck(world: World) -> None:
    """The server cannot write any more to a phone: all buffers on the way are full."""
    sockets_of: Any = world.server.server_state.connections
    await until(lambda: any(not one.writable.is_set() for one in sockets_of if isinstance(one, sockets.PhoneProtocol)))


def numbers(frames: list[dict[str, Any]]) -> list[int]:
    return [int(frame["data"]["ride_id"]) for frame in frames if frame["event"] == "ride.progress"]


def seqs(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["seq"] for frame in frames if "seq" in frame]


async def test_a_phone_that_reads_late_gets_everything_durable_and_the_newest_of_the_rest(backend: Backend) -> None:
    async with backend.world() as world:
        slow, other = await Phone(world).login(), await world.passenger()
        async with lazy(slow) as (peer, _):
            await tell(world, slow, 0, FRAMES)
            await stuck(world)
            # Nobody waits for it: not whoever speaks to it, nor any other phone.
            await tell(world, other, 0, 3)
            await other.expect("ride.progress", ride_id="2")
            await until(lambda: world.app.delivery.waiting() == (1, 2))
            text = (await world.http.get("/metrics")).text
            assert "nebengjek_sockets_waiting 1.0" in text
            assert "nebengjek_frames_waiting 2.0" in text
            awaited = {("one", FRAMES - 1), ("two", FRAMES - 1), (str(FRAMES - 1), None)}

            def last(frame: dict[str, Any]) -> bool:
                awaited.discard((frame["data"].get("ride_id"), frame["data"].get("number")))
                return not awaited

            frames = await heard(peer, last)
        assert numbers(frames) == list(range(FRAMES))
        assert seqs(frames) == list(range(1, FRAMES + 1))
        for ride in ("one", "two"):
            shown = [frame["data"]["number"] for frame in frames if frame["data"].get("ride_id") == ride]
            assert shown == sorted(shown)
            # What the buffers had taken before they were full, and the newest.
            assert len(shown) < FRAMES / 2


async def test_a_phone_that_reads_nothing_for_a_minute_is_closed_4408_and_resumes_without_loss(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long it has to read that it is closed, and why, before the line is cut: here also on a busy machine.
    monkeypatch.setattr(sockets, "LINGER", WAIT)
    # The minute is the application's; how long the network is waited for, the setting's.
    async with backend.own_world(web__stall_timeout=0.5) as world:
        slow, other = await Phone(world).login(), await world.passenger()
        async with lazy(slow) as (peer, ready):
            await tell(world, slow, 0, FRAMES)
            await stuck(world)
            for second in range(60):
                await world.advance(1)
                await tell(world, slow, FRAMES + second, 1)
                await tell(world, other, second, 1)
                await other.expect("ride.progress", ride_id=str(second))
            await cut_off(world)
            before = await heard(peer, lambda _: False)
            assert peer.close_code == 4408
        last = seqs(before)[-1]
        assert last < FRAMES
        async with lazy(slow, f"?epoch={ready['epoch']}&last_seq={last}") as (peer, again):
            assert again["replay"] == "complete"
            after = await heard(peer, lambda frame: frame.get("seq") == FRAMES + 60)
        assert numbers(before + after) == list(range(FRAMES + 60))
        assert seqs(before + after) == list(range(1, FRAMES + 61))


async def cut_off(world: World) -> None:
    """The application looks at its phones each second; here as often as it can."""
    async with asyncio.timeout(WAIT):
        while "nebengjek_phones_cut_off_total 0.0" in (await world.http.get("/metrics")).text:
            await world.app.sweep()


async def test_a_phone_that_never_reads_again_is_let_go(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LINGER", 0.05)
    async with embedded.own_world(web__stall_timeout=0.1) as world:
        slow = await Phone(world).login()
        async with lazy(slow):
            await tell(world, slow, 0, FRAMES)
            await stuck(world)
            await cut_off(world)
            await until(lambda: world.app.delivery.sockets == 0)
            # Nothing is left but the socket of whoever asks for the metrics.
            await until(lambda: len(world.server.server_state.connections) == 1)


async def test_a_server_that_ends_does_not_wait_for_a_phone_that_does_not_read(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "LINGER", 0.05)
    async with embedded.own_world() as world:
        slow = await Phone(world).login()
        async with lazy(slow):
            await tell(world, slow, 0, FRAMES)
            await stuck(world)
            # It waits until no connection is left.
            await world.restart()


# -- what goes over the wire


class Wire:
    """A phone that takes frames as they are, and answers nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: str) -> None:
        self._reader = reader
        self.writer = writer
        self.answer = answer

    @classmethod
    async def connect(cls, phone: Phone, *headers: str) -> "Wire":
        port = phone.world.server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = [
            "GET /ws HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            f"Authorization: Bearer {phone.token}",
            *headers,
        ]
        writer.write(("\r\n".join(asked) + "\r\n\r\n").encode())
        return cls(reader, writer, (await reader.readuntil(b"\r\n\r\n")).decode())

    async def frame(self) -> tuple[int, bytes]:
        """(its first byte, its payload); (0, b"") at the end."""
        async with asyncio.timeout(WAIT):
            head = await self._reader.read(1)
            if not head:
                return 0, b""
            size = (await self._reader.readexactly(1))[0]
            if size == 126:
                size = int.from_bytes(await self._reader.readexactly(2), "big")
            return head[0], await self._reader.readexactly(size)


async def test_two_pings_without_an_answer_are_the_end(embedded: Embedded) -> None:
    async with embedded.own_world(web__ping_interval=0.2) as world:
        alive, dead = await world.passenger(), await Phone(world).login()
        wire = await Wire.connect(dead)
        assert wire.answer.startswith("HTTP/1.1 101")
        frames = [await wire.frame() for _ in range(5)]
        wire.writer.close()
        # session.ready, two pings, the close frame that says why, and no socket any more.
        assert [first & 0x0F for first, _ in frames] == [1, 9, 9, 8, 0]
        assert int.from_bytes(frames[3][1][:2], "big") == 1011
        await until(lambda: world.app.delivery.sockets == 1)
        await alive.say("session.ack", {"seq": 0})


async def test_large_frames_are_deflated_without_a_context_and_small_ones_are_not(embedded: Embedded) -> None:
    async with embedded.world() as world:
        phone = await Phone(world).login()
        wire = await Wire.connect(phone, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
        agreed = next(line for line in wire.answer.splitlines() if line.lower().startswith("sec-websocket-extensions"))
        assert {"server_no_context_takeover", "client_no_context_takeover"} <= {*agreed.replace(";", " ").split()}
        assert (await wire.frame())[0] == 0x81
        for large in (True, False, True):
            text = "apa kabar " * 200 if large else "apa kabar"
            world.app.delivery.show(phone.user_id, "ride.tracking", {"text": text})
            first, payload = await wire.frame()
            # RSV1 is the mark of a frame that is compressed.
            assert first == (0xC1 if large else 0x81)
            if large:
                # Each by itself: nothing of an earlier frame is needed to read it.
                payload = zlib.decompressobj(wbits=-12).decompress(payload + b"\x00\x00\xff\xff")
            assert json.loads(payload)["data"] == {"text": text}
        wire.writer.close()


async def test_a_phone_that_says_much_at_once_is_heard_in_order(embedded: Embedded) -> None:
    async with embedded.world() as world:
        phone = await world.passenger()
        for number in range(200):
            await phone.tell("session.ack", {"seq": 0}, str(number))
        await phone.expect("ack", id="199")
        acked = [frame["data"]["id"] for frame in phone.frames if frame["event"] == "ack"]
        assert acked == [str(number) for number in range(200)]


async def test_a_phone_may_send_deflated_frames(embedded: Embedded) -> None:
    async with embedded.world() as world:
        phone = await Phone(world).login()
        url = world.url.replace("http", "ws") + "/ws"
        async with connect(url, additional_headers=phone.bearer, compression="deflate") as peer:
            await peer.recv()
            for number in range(2):
                frame = {"event": "session.ack", "data": {"seq": 0, "more": "x" * 5000}, "id": str(number)}
                await peer.send(json.dumps(frame))
                assert json.loads(await peer.recv())["data"] == {"id": str(number)}
            # What is small on the way may be large when it has arrived.
            await peer.send(json.dumps({"event": "x" * 200_000}))
            with pytest.raises(ConnectionClosed):
                await peer.recv()
            assert peer.close_code == 1009


async def test_of_more_sockets_of_a_user_than_are_allowed_the_oldest_makes_room(embedded: Embedded) -> None:
    async with embedded.own_world(web__sockets_per_user=2) as world:
        other, phone = await world.passenger(), await Phone(world).login()
        url = world.url.replace("http", "ws") + "/ws"
        peers = []
        for _ in range(3):
            peers.append(await connect(url, additional_headers=phone.bearer))
            assert json.loads(await peers[-1].recv())["event"] == "session.ready"
        assert await heard(peers[0], lambda _: False) == []
        assert peers[0].close_code == 4410
        await tell(world, phone, 0, 1)
        for peer in peers[1:]:
            await heard(peer, lambda frame: frame.get("seq") == 1)
        # Nobody else's are counted, and a place that becomes free is free.
        await other.say("session.ack", {"seq": 0})
        await peers[1].close()
        await until(lambda: world.app.delivery.sockets == 2)
        peers.append(await connect(url, additional_headers=phone.bearer))
        assert json.loads(await peers[3].recv())["event"] == "session.ready"
        await tell(world, phone, 1, 1)
        for peer in peers[2:]:
            await heard(peer, lambda frame: frame.get("seq") == 2)
            await peer.close()


async def test_of_many_who_come_at_once_each_waits_for_its_turn_and_who_leaves_meanwhile_has_none(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "GREETINGS", 1)
    async with embedded.own_world() as world:
        people = [await Phone(world).login() for _ in range(4)]
        presence, door = world.app.delivery.presence, asyncio.Event()
        came: list[str] = []
        attach = presence.attach

        async def slowly(user_id: str, connection_id: str) -> None:
            came.append(user_id)
            await door.wait()
            await attach(user_id, connection_id)

        monkeypatch.setattr(presence, "attach", slowly)
        url = world.url.replace("http", "ws") + "/ws"
        peers = []
        for waiting, phone in enumerate(people):
            peers.append(await connect(url, additional_headers=phone.bearer))
            await until_measured(world, f"nebengjek_greetings_waiting {waiting}.0")
        await peers[1].close()
        # Said before anybody listened, and not lost.
        await peers[2].send(json.dumps({"event": "session.ack", "data": {"seq": 0}, "id": "early"}))
        door.set()
        for peer in (peers[0], peers[2], peers[3]):
            assert json.loads(await peer.recv())["event"] == "session.ready"
        assert json.loads(await peers[2].recv()) == {"event": "ack", "data": {"id": "early"}}
        assert came == [people[number].user_id for number in (0, 2, 3)]
        await until_measured(world, "nebengjek_greetings_waiting 0.0")
        for peer in peers:
            await peer.close()


async def until_measured(world: World, line: str) -> None:
    async with asyncio.timeout(WAIT):
        while line not in (await world.http.get("/metrics")).text.splitlines():
            pass
