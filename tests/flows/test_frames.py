"""Frames that are wrong, and sockets that may not be: each gets its code, nothing is lost, no socket hangs."""

import asyncio
import json
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from nebengjek.tokens import Tokens
from tests.flows.conftest import Backend, Embedded
from tests.flows.world import MONAS, Phone, Refused, World
from tests.servers import mortal_valkey_server


async def code_of(phone: Phone, text: str | bytes) -> str:
    """The code of the error that answers a raw frame."""
    seen = len(phone.frames)
    await phone.raw(text)
    frame = await phone.find(lambda one: one["event"] == "error", since=seen)
    code: str = frame["data"]["code"]
    return code


async def test_malformed_frames_are_named_and_keep_the_socket(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        for text in (
            "",
            "{",
            "[]",
            "null",
            '"x"',
            "{}",
            '{"event": 7}',
            '{"event": "user.finder", "data": []}',
            '{"event": "user.finder", "data": {"is_active": "yes"}}',
            '{"event": "user.finder", "data": {}, "id": 7}',
            '{"event": "ride.pay", "data": {"ride_id": "x", "amount": 1.5}}',
            '{"event": "ride.pay", "data": {"ride_id": "x", "amount": -1}}',
            '{"event": "location.update", "data": {"location": {"latitude": NaN, "longitude": 1}}}',
            '{"event": "location.update", "data": {"location": {"latitude": 91, "longitude": 1}}}',
            '{"event": "location.update", "data": {"location": {"latitude": 1, "longitude": -181}}}',
            b"\xff\x00",
        ):
            assert await code_of(phone, text) == "INVALID_FRAME"
        assert await code_of(phone, '{"event": "ride.fly", "data": {}}') == "UNKNOWN_EVENT"
        assert await code_of(phone, "[" * 10_000) == "INVALID_FRAME"
        await phone.point(MONAS)


async def test_an_error_carries_the_id_of_its_frame(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        await phone.tell("ride.fly", {}, "my-id")
        assert (await phone.find(lambda one: one["event"] == "error"))["data"]["id"] == "my-id"


async def test_twenty_bad_frames_in_a_row_close_the_socket_and_a_good_one_resets(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        for _ in range(19):
            await phone.raw("{")
        await phone.point(MONAS)
        for _ in range(19):
            await phone.raw("{")
        await phone.point(MONAS)
        for _ in range(20):
            await phone.raw("{")
        assert await phone.closed() == 4400


async def test_refused_commands_are_no_bad_frames(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        for _ in range(25):
            with pytest.raises(Refused, match="NOT_FOUND"):
                await phone.say("ride.cancel", {"ride_id": "nothing"})


async def test_a_frame_over_64_kib_closes_the_socket(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        await phone.raw(json.dumps({"event": "user.finder", "data": {"x": "y" * 66_000}}))
        assert await phone.closed() == 1009


async def test_too_many_frames_are_refused_but_do_not_close(backend: Backend) -> None:
    async with backend.own_world(web__frames_per_second=20, web__frame_burst=5) as world:
        phone = await world.passenger()
        for number in range(60):
            await phone.tell("session.ack", {"seq": 0}, str(number))
        limited = await phone.expect("error", code="RATE_LIMITED")
        assert limited["data"]["retry_after"] > 0
        assert phone.close_code is None


@pytest.mark.parametrize("kind", ["missing", "garbage", "expired", "foreign", "wrong algorithm"])
async def test_a_socket_without_a_good_token_is_closed_4401(backend: Backend, kind: str) -> None:
    async with backend.world() as world:
        user = await world.passenger()
        token = user.token
        if kind == "missing":
            token = ""
        elif kind == "garbage":
            token = "abc.def.ghi"
        elif kind == "expired":
            world.clock.advance(25 * 3600)
        elif kind == "foreign":
            token, _ = Tokens("another secret of the right length, truly", lifetime=60, clock=world.clock).issue(
                user.user_id, "passenger", "s"
            )
        else:
            token = "eyJhbGciOiJub25lIn0." + token.split(".")[1] + "."
        assert await refused_with(world, token) == 4401
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = await world.http.get("/users/me", headers=headers)
        assert (response.status_code, response.json()["code"]) == (401, "UNAUTHENTICATED")


async def refused_with(world: World, token: str) -> int | None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with connect(world.url.replace("http", "ws") + "/ws", additional_headers=headers) as socket:
        await socket.wait_closed()
        return socket.close_code


async def test_a_browser_gives_its_token_as_a_subprotocol(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        protocols = ["nebengjek.v1", f"bearer.{phone.token}"]
        async with connect(world.url.replace("http", "ws") + "/ws", subprotocols=protocols) as socket:  # type: ignore[arg-type]
            assert socket.subprotocol == "nebengjek.v1"
            assert json.loads(await socket.recv())["event"] == "session.ready"


async def test_a_socket_ends_with_its_token(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        await world.advance(24 * 3600 + 1)
        assert await phone.closed() == 4401


async def test_logout_closes_the_socket_and_ends_the_tokens(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        other = await Phone(world).login()
        assert (await phone.http("POST", "/auth/logout", {"refresh_token": phone.refresh_token})).status_code == 204
        assert await phone.closed() == 4401
        assert (await phone.http("GET", "/users/me")).status_code == 401
        with pytest.raises(Refused, match="UNAUTHENTICATED"):
            await phone.ask("POST", "/auth/refresh", {"refresh_token": phone.refresh_token})
        assert (await other.http("GET", "/users/me")).status_code == 200


async def test_the_same_frame_id_repeats_the_answer_and_not_the_effect(backend: Backend) -> None:
    async with backend.world() as world:
        driver = await world.driver()
        beacon = {"is_active": True, "location": MONAS}
        first = await driver.say("user.beacon", beacon, "same")
        again = await driver.say("user.beacon", beacon, "same")
        assert first == again
        await driver.point(MONAS)
        assert driver.count("user.beacon") == 1
        with pytest.raises(Refused, match="ID_REUSED"):
            await driver.say("user.beacon", {"is_active": False}, "same")
        # Five minutes later the id is new.
        world.clock.advance(301)
        if backend.name == "embedded":
            await driver.say("user.beacon", {"is_active": False}, "same")


async def test_both_sockets_of_a_user_hear_everything_and_end_alone(backend: Backend) -> None:
    async with backend.world() as world:
        first, passenger = await world.driver(), await world.passenger()
        second = Phone(world)
        second.user_id, second.token = first.user_id, first.token
        world.phones.append(second)
        await second.connect()
        match_id = await world.pair(first, passenger)
        await second.expect("match.found", match_id=match_id)
        await first.disconnect()
        await second.say("match.accept", {"match_id": match_id})
        await passenger.expect("match.found", match_id=match_id, match_status="DRIVER_CONFIRMED")


async def test_what_was_missed_is_replayed_in_order(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), Phone(world)
        world.phones.append(passenger)
        await passenger.login()
        ready = await passenger.connect()
        assert (ready["replay"], ready["last_seq"]) == ("none", 0)
        await passenger.disconnect()
        await driver.say("user.beacon", {"is_active": True, "location": MONAS})
        await passenger.ask("PUT", "/finder", {"is_active": True, "location": MONAS, "target_location": MONAS})
        await driver.expect("match.found")
        ready = await passenger.connect(f"?epoch={ready['epoch']}&last_seq=0")
        assert ready["replay"] == "complete"
        await passenger.expect("match.found")
        seqs = [frame["seq"] for frame in passenger.frames if "seq" in frame]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(ready["proposals"]) == 1


@pytest.mark.parametrize("query", ["?epoch=x&last_seq=0", "?last_seq=99", "?last_seq=-5", "?last_seq=abc"])
async def test_a_position_that_nobody_knows_is_reset(backend: Backend, query: str) -> None:
    async with backend.world() as world:
        phone = await Phone(world).login()
        world.phones.append(phone)
        assert (await phone.connect(query))["replay"] == "reset"


async def test_commands_of_one_phone_at_once_are_answered_each_once(backend: Backend) -> None:
    async with backend.world() as world:
        driver = await world.driver()
        beacon = {"is_active": True, "location": MONAS}
        answers = await asyncio.gather(*(driver.say("user.beacon", beacon) for _ in range(30)))
        assert all(answer["is_active"] for answer in answers)


async def test_a_server_that_ends_closes_with_1012(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        await world.restart()
        assert await phone.closed() == 1012


@pytest.mark.real
async def test_while_redis_is_away_a_phone_is_told_to_try_again_later(tmp_path: Path, sqlite_template: Path) -> None:
    with mortal_valkey_server() as redis:
        async with Embedded(tmp_path, sqlite_template).own_world(redis__url=redis.url) as world:
            phone = await Phone(world).login()
            connected = await world.passenger()
            await asyncio.to_thread(redis.stop)
            assert await refused_with(world, phone.token) == 1013
            response = await phone.http("GET", "/users/me")
            assert (response.status_code, response.json()["code"]) == (503, "UNAVAILABLE")
            assert response.headers["retry-after"] == "1"
            # Who has no token at all need not come back.
            assert await refused_with(world, "") == 4401
            assert connected.close_code is None
            await asyncio.to_thread(redis.start)
            world.phones.append(phone)
            assert (await phone.connect())["user_id"] == phone.user_id
