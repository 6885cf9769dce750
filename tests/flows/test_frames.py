"""Frames that are wrong, and sockets that may not be: each gets its code, nothing is lost, no socket hangs."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from nebengjek.tokens import Tokens
from tests.flows.conftest import Backend, Embedded
from tests.flows.world import MONAS, Phone, Refused, World
from tests.servers import mortal_valkey_server, valkey_server


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


SLOW: dict[str, Any] = {
    "web__frames_per_second": 0.01,
    "web__frame_burst": 5,
    "web__commands_per_second": 0.02,
    "web__command_burst": 3,
}
"""So slow that none is added while a test runs."""


async def answers(phone: Phone, event: str, data: object, count: int) -> tuple[int, list[dict[str, Any]]]:
    """(how many of ``count`` frames were acked, the errors of the others)."""
    ids = {str(uuid4()) for _ in range(count)}
    for frame_id in ids:
        await phone.tell(event, data, frame_id)
    awaited = {*ids}

    def last(frame: dict[str, Any]) -> bool:
        awaited.discard(frame["data"].get("id"))
        return not awaited

    await phone.find(last)
    mine = [one for one in phone.frames if one["data"].get("id") in ids]
    return sum(one["event"] == "ack" for one in mine), [one["data"] for one in mine if one["event"] == "error"]


async def test_too_many_frames_of_a_kind_are_refused_and_all_sockets_of_a_user_count(backend: Backend) -> None:
    async with backend.own_world(**SLOW) as world:
        phone, other = await world.driver(), await world.passenger()
        twin = Phone(world)
        twin.user_id, twin.token = phone.user_id, phone.token
        world.phones.append(twin)
        await twin.connect()
        acked, refused = await answers(phone, "session.ack", {"seq": 0}, 4)
        assert (acked, refused) == (4, [])
        acked, refused = await answers(twin, "session.ack", {"seq": 0}, 4)
        assert acked == 1
        assert {error["code"] for error in refused} == {"RATE_LIMITED"}
        assert all(60 < error["retry_after"] <= 100 for error in refused)
        # Each kind by itself, points and commands by their own rates; and nobody pays for somebody else.
        point = {"location": {**MONAS, "timestamp": world.clock.now().isoformat()}}
        assert (await answers(twin, "location.update", point, 7))[0] == 5
        acked, refused = await answers(twin, "user.beacon", {"is_active": False}, 4)
        assert acked == 3
        assert 30 < refused[0]["retry_after"] <= 50
        assert (await answers(other, "session.ack", {"seq": 0}, 5))[0] == 5
        await phone.raw("{")
        assert (await phone.expect("error", code="INVALID_FRAME"))["data"]
        for _ in range(25):
            await phone.raw("{")
        await phone.find(
            lambda one: one["data"].get("code") == "RATE_LIMITED" and "unreadable" in one["data"]["message"]
        )
        assert phone.close_code is None


async def test_commands_over_http_count_too(embedded: Embedded) -> None:
    async with embedded.own_world(**SLOW) as world:
        phone = await world.driver()
        assert (await answers(phone, "user.beacon", {"is_active": False}, 2))[0] == 2
        assert (await phone.http("PUT", "/beacon", {"is_active": False})).status_code == 200
        response = await phone.http("PUT", "/beacon", {"is_active": False})
        assert (response.status_code, response.json()["code"]) == (429, "RATE_LIMITED")
        assert 30 < int(response.headers["retry-after"]) <= 50
        assert (await phone.http("GET", "/users/me")).status_code == 200


@pytest.mark.real
async def test_a_user_has_one_allowance_on_all_pods(tmp_path: Path, sqlite_template: Path) -> None:
    backend = Embedded(tmp_path, sqlite_template)
    shared = await backend.fresh()
    with valkey_server() as redis_url:
        shared["redis__url"] = redis_url
        async with backend.own_world(**SLOW, **shared) as here, backend.own_world(**SLOW, **shared) as there:
            phone, twin = await here.driver(), Phone(there)
            twin.user_id, twin.token = phone.user_id, phone.token
            there.phones.append(twin)
            await twin.connect()
            assert (await answers(phone, "session.ack", {"seq": 0}, 3))[0] == 3
            acked, refused = await answers(twin, "session.ack", {"seq": 0}, 4)
            assert (acked, {error["code"] for error in refused}) == (2, {"RATE_LIMITED"})


@pytest.mark.real
async def test_with_redis_away_each_pod_counts_by_itself(tmp_path: Path, sqlite_template: Path) -> None:
    with mortal_valkey_server() as redis:
        async with Embedded(tmp_path, sqlite_template).own_world(redis__url=redis.url, **SLOW) as world:
            phone = await world.driver()
            assert (await answers(phone, "session.ack", {"seq": 0}, 5))[0] == 5
            await asyncio.to_thread(redis.stop)
            for _ in range(5):
                await phone.tell("location.update", {"location": MONAS})
            for number in range(2):
                await phone.tell("location.update", {"location": MONAS}, str(number))
                await phone.expect("error", id=str(number), code="RATE_LIMITED")
            await asyncio.to_thread(redis.start)


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        (None, (), 101),
        ("{url}", (), 101),
        ("https://evil.example", (), 403),
        ("null", (), 403),
        ("https://evil.example", ("https://app.example",), 403),
        ("https://app.example", ("https://app.example",), 101),
        ("https://anything.example", ("*",), 101),
    ],
)
async def test_a_page_from_elsewhere_may_not_open_a_socket(
    embedded: Embedded, origin: str | None, allowed: tuple[str, ...], status: int
) -> None:
    async with embedded.world(**({"web__allowed_origins": list(allowed)} if allowed else {})) as world:
        phone = await Phone(world).login()
        headers = {"Origin": origin.format(url=world.url)} if origin is not None else {}
        try:
            async with connect(
                world.url.replace("http", "ws") + "/ws", additional_headers={**phone.bearer, **headers}
            ) as socket:
                assert json.loads(await socket.recv())["event"] == "session.ready"
                found = 101
        except InvalidStatus as refused:
            found = refused.response.status_code
        assert found == status


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
