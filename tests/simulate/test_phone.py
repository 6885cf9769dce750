"""A phone against a server that misbehaves on purpose: it repeats, reconnects, keeps the furthest, and slows down."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve

from nebengjek.contracts.geo import Location
from nebengjek.simulate import phone as phone_module
from nebengjek.simulate.movement import GpsNoise
from nebengjek.simulate.phone import WINDOW, Phone, PhoneError, Refused, Tally

MONAS = Location(latitude=-6.1754, longitude=106.8272)
READY = {"user_id": "u", "epoch": "e", "last_seq": 0, "replay": "none", "proposals": []}
RIDE = {"ride_id": "r", "match_id": "m", "driver_id": "d", "passenger_id": "u"}
MATCH = {"match_id": "m", "driver_id": "d", "passenger_id": "u", "distance_km": 1.0}


class Script:
    """A server for one phone: ``frames`` said by it so far, ``paths`` it connected with, ``answer`` to each frame."""

    def __init__(self, answer: Callable[[dict[str, Any], "Script"], Any] | None = None) -> None:
        self.frames: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.tokens: list[str | None] = []
        self.ready: list[dict[str, Any]] = []
        self.socket: ServerConnection | None = None
        self._answer = answer

    async def __call__(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.paths.append(socket.request.path)
        self.tokens.append(socket.request.headers.get("Authorization"))
        self.socket = socket
        ready = self.ready.pop(0) if self.ready else READY
        await self.say("session.ready", ready)
        async for text in socket:
            frame = json.loads(text)
            self.frames.append(frame)
            answer = self._answer(frame, self) if self._answer else None
            if answer is not None:
                await self.say(*answer)

    async def say(self, event: str, data: dict[str, Any], seq: int | None = None) -> None:
        assert self.socket is not None
        frame = {"event": event, "data": data} | ({} if seq is None else {"seq": seq})
        await self.socket.send(json.dumps(frame))


def ack(frame: dict[str, Any], script: Script) -> Any:
    return ("ack", {"id": frame["id"], "status": "done"}) if "id" in frame else None


@asynccontextmanager
async def connected(script: Script, tally: Tally | None = None) -> AsyncIterator[Phone]:
    async with serve(script, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            phone = Phone(http, "+6281200000000", GpsNoise(0, random.Random(1)), tally or Tally())
            phone.token = "t"
            async with phone:
                yield phone


async def test_a_command_carries_the_token_and_an_id_and_returns_what_the_ack_carries() -> None:
    script = Script(ack)
    async with connected(script) as phone:
        answer = await phone.command("ride.start", {"ride_id": "r"})
    assert answer["status"] == "done"
    assert script.tokens == ["Bearer t"]
    assert script.frames[0] == {"event": "ride.start", "data": {"ride_id": "r"}, "id": script.frames[0]["id"]}


async def test_a_command_without_an_answer_is_said_again_with_the_same_id() -> None:
    script = Script(lambda frame, script: ack(frame, script) if len(script.frames) == 3 else None)
    tally = Tally()
    async with connected(script, tally) as phone:
        await phone.command("ride.start", {"ride_id": "r"}, timeout=0.02)
    assert len({frame["id"] for frame in script.frames}) == 1
    assert (len(script.frames), tally.repeated) == (3, 2)


async def test_a_command_that_is_never_answered_ends_in_an_error() -> None:
    async with connected(Script()) as phone:
        with pytest.raises(PhoneError, match=r"ride\.start: no answer after 6 tries"):
            await phone.command("ride.start", {"ride_id": "r"}, timeout=0.01)


async def test_what_passes_later_is_tried_again_and_what_is_refused_is_not() -> None:
    def answer(frame: dict[str, Any], script: Script) -> Any:
        code = ["RATE_LIMITED", "UNAVAILABLE", "FORBIDDEN"][len(script.frames) - 1]
        return "error", {"id": frame["id"], "code": code, "message": "no", "retry_after": 0.01}

    script = Script(answer)
    async with connected(script) as phone:
        with pytest.raises(Refused, match="FORBIDDEN") as refused:
            await phone.command("ride.start", {"ride_id": "r"})
    assert refused.value.code == "FORBIDDEN"
    assert len(script.frames) == 3


async def test_a_command_survives_a_dropped_socket_and_the_phone_asks_for_what_it_missed() -> None:
    def answer(frame: dict[str, Any], script: Script) -> Any:
        return ack(frame, script) if len(script.paths) == 2 else None

    script = Script(answer)
    tally = Tally()
    script.ready = [READY, {**READY, "last_seq": 7, "replay": "complete"}]
    async with connected(script, tally) as phone:
        await script.say("ride.pickup", {**RIDE, "status": "PICKUP"}, seq=7)
        await phone.until(lambda: phone.rides, seconds=5)
        assert script.socket is not None
        saying = asyncio.create_task(phone.command("ride.start", {"ride_id": "r"}, timeout=0.3))
        await script.socket.close(1012)
        assert (await saying)["status"] == "done"
    assert script.paths == ["/ws", "/ws?epoch=e&last_seq=7"]
    assert tally.drops == 1
    assert phone.rides["r"].status == "PICKUP"


async def test_a_frame_that_comes_twice_is_heard_once_and_a_gap_is_counted() -> None:
    script, tally = Script(ack), Tally()
    async with connected(script, tally) as phone:
        for seq in (1, 1, 2, 4):
            await script.say("match.found", {**MATCH, "match_status": "PENDING"}, seq=seq)
        await phone.command("ride.start", {})
    assert len(phone.history) == 3
    assert (tally.gaps, tally.news) == (1, 3)


async def test_the_furthest_state_wins_whatever_came_first() -> None:
    script = Script(ack)
    async with connected(script) as phone:
        await script.say("ride.arrived", {**RIDE, "status": "ARRIVED", "adjusted_cost": 900}, seq=1)
        await script.say("ride.pickup", {**RIDE, "status": "PICKUP"}, seq=2)
        await script.say("match.accepted", {**MATCH, "match_status": "ACCEPTED"}, seq=3)
        await script.say("match.found", {**MATCH, "match_status": "PENDING"}, seq=4)
        await phone.command("ride.start", {})
        ride = phone.open_ride()
        assert ride is not None
        assert (ride.status, ride.adjusted_cost) == ("ARRIVED", 900)
        assert phone.open_matches() == []
        await script.say("ride.completed", {**RIDE, "status": "COMPLETED"}, seq=5)
        await phone.until(lambda: phone.is_over("r"), seconds=5)
        assert phone.open_ride() is None


async def test_a_reset_takes_the_snapshot_for_the_truth() -> None:
    script = Script(ack)
    other = {**MATCH, "match_id": "m2", "match_status": "PENDING"}
    ride = {**RIDE, "status": "ONGOING"}
    script.ready = [READY, {**READY, "last_seq": 90, "replay": "reset", "proposals": [other], "ride": ride}]
    async with connected(script, tally := Tally()) as phone:
        await script.say("match.found", {**MATCH, "match_status": "PENDING"}, seq=1)
        await phone.until(phone.open_matches, seconds=5)
        assert script.socket is not None
        await script.socket.close(1012)
        await phone.until(lambda: phone.rides, seconds=5)
        assert [match.match_id for match in phone.open_matches()] == ["m2"]
        assert phone.rides["r"].status == "ONGOING"
        await script.say("ride.arrived", {**RIDE, "status": "ARRIVED"}, seq=91)
        await phone.until(lambda: phone.rides["r"].status == "ARRIVED", seconds=5)
    assert tally.gaps == 0


async def test_a_locked_out_phone_says_so() -> None:
    class Closed(Script):
        async def __call__(self, socket: ServerConnection) -> None:
            await socket.close(4401)

    with pytest.raises(PhoneError, match="does not accept the token"):
        async with connected(Closed()):
            pass


async def test_points_wait_when_the_server_falls_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_module, "WINDOW_SECONDS", 30.0)
    script = Script(ack)
    async with connected(script) as phone:
        for step in range(WINDOW):
            await phone.ping(Location(latitude=-6.1, longitude=106 + step / 1000), step)
        late = asyncio.create_task(phone.ping(Location(latitude=-6.2, longitude=106.9), 100))
        await phone.command("ride.start", {})
        assert not late.done()
        last = script.frames[WINDOW - 1]["data"]["location"]
        await script.say("location.stored", {"location": last, "geohash": "x"})
        await late
        # One confirmation stands for all points before it.
        assert not await phone.settled(0.0)
        await script.say("location.stored", {"location": {"latitude": -6.2, "longitude": 106.9}, "geohash": "x"})
        assert await phone.settled(5.0)


async def test_points_carry_the_phone_s_own_time_which_only_grows() -> None:
    script = Script(ack)
    async with connected(script) as phone:
        for at in (1_384_790_400.0, 1_384_790_390.0):
            await phone.ping(MONAS, at)
        await phone.command("ride.start", {})
    times = [frame["data"]["location"]["timestamp"] for frame in script.frames[:2]]
    assert times == ["2013-11-18T16:00:00.000Z", "2013-11-18T16:00:00.010Z"]


async def test_a_refused_point_is_counted() -> None:
    script, tally = Script(ack), Tally()
    async with connected(script, tally) as phone:
        await script.say("error", {"code": "POINT_REFUSED", "message": "teleport"})
        await phone.command("ride.start", {})
    assert tally.points_refused == 1
