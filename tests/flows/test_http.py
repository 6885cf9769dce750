"""Refusals over HTTP: each has its status, its code and its words as a problem; nothing that is sent is a 500."""

from typing import Any

import pytest

from nebengjek.settings import DEVELOPMENT_ADMIN_KEY
from nebengjek.tokens import Tokens
from tests.flows.conftest import Backend, Embedded
from tests.flows.problems import refused
from tests.flows.world import MONAS, Phone

NOBODY = "0192f0c0-7c4e-7a31-9d5b-5b1f0f3a1c01"
BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b"not json",
    b'{"msisdn": 811}',
    b'{"msisdn": null}',
    b'{"msisdn": "\xff\xfe"}',
    b'{"msisdn": "\\ud800"}',
    b'{"msisdn": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
]
PROFILES = [b"{", b"[]", b'{"full_name": 7}', b'{"full_name": ""}', b'{"email": 7}', b'{"full_name": "a\\u0000b"}']
PROFILES += [b'{"full_name": "Ani\\n"}']
IDS = [NOBODY, "x", "a.b", "*", "%3E", "%00", "%C3%A9", "1%20OR%201=1", "' OR 1=1 --", "x" * 500, "..%2F..", "%F0%9F"]


async def test_bodies_that_are_none(backend: Backend) -> None:
    async with backend.world() as world:
        driver = await world.driver()
        headers = {"Authorization": f"Bearer {driver.token}", "Content-Type": "application/json"}
        for body in BODIES:
            for path in ("/auth/otp/generate", "/auth/otp/verify", "/auth/refresh", "/drivers/register"):
                problem = refused(await world.http.post(path, content=body, headers=headers), 400, "INVALID")
                assert "Traceback" not in problem["detail"]
        for body in PROFILES:
            refused(await world.http.patch("/users/me", content=body, headers=headers), 400, "INVALID")
        point = b'{"location": {"latitude": %s, "longitude": 106.8}}'
        for latitude in (b"91", b"-90.01", b"NaN", b"Infinity", b"1e999", b"null"):
            refused(await world.http.post("/location", content=point % latitude, headers=headers), 400, "INVALID")
        problem = refused(await driver.http("PUT", "/beacon", {"is_active": 7}), 400, "INVALID")
        assert [error["field"] for error in problem["errors"]] == ["is_active"]


async def test_a_body_of_another_kind_is_not_read(backend: Backend) -> None:
    async with backend.world() as world:
        driver = await world.driver()

        async def switch(kind: str | None, body: bytes = b'{"is_active": false}') -> Any:
            headers = {"Authorization": f"Bearer {driver.token}"} | ({"Content-Type": kind} if kind else {})
            return await world.http.put("/beacon", content=body, headers=headers)

        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/msgpack", "json"):
            refused(await switch(kind), 415, "UNSUPPORTED_MEDIA_TYPE")
        taken = ("application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json", None)
        for kind_or_none in taken:
            assert (await switch(kind_or_none)).json() == {"is_active": False}
        # What curl -d says unless it is told otherwise.
        assert (await switch("application/x-www-form-urlencoded")).status_code == 200
        # No body is of no kind.
        refused(await switch("text/plain", b""), 400, "INVALID")


async def test_who_is_not_known_is_told_so(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        foreign = Tokens("another secret of the right length, truly", lifetime=60, clock=world.clock)
        stranger, _ = foreign.issue(phone.user_id, "passenger", "a-session")
        for token in ("garbage", phone.token + "x", phone.token[:-10], phone.refresh_token, stranger):
            response = await phone.http("GET", "/users/me", token=token)
            refused(response, 401, "UNAUTHENTICATED")
            assert response.headers["www-authenticate"] == "Bearer"
        for header in ("Basic dXNlcjpwYXNz", "Bearer", "bearer x y", phone.token):
            refused(await world.http.get("/users/me", headers={"Authorization": header}), 401, "UNAUTHENTICATED")
        assert (await phone.http("GET", "/users/me")).status_code == 200
        world.clock.advance(24 * 3600 + 1)
        refused(await phone.http("GET", "/users/me"), 401, "UNAUTHENTICATED")


async def test_every_route_asks_who_is_there_before_it_looks_at_anything_else(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        key = {"X-API-Key": DEVELOPMENT_ADMIN_KEY}
        asked = set()
        for path, item in (await world.http.get("/schema")).json()["paths"].items():
            for method, operation in item.items():
                if operation.get("security") == []:
                    continue
                asked.add(path)
                url = path.replace("{seq}", "1").replace("{", "").replace("}", "")
                wrong = {**phone.bearer, "X-API-Key": "wrong"} if path.startswith("/admin") else key
                for headers in ({}, wrong):
                    response = await world.http.request(method, url, content=b"[", headers=headers)
                    refused(response, 401, "UNAUTHENTICATED")
        assert asked >= {"/users/me", "/rides/{ride_id}/pay", "/admin/rides", "/admin/dead-letters/{seq}/replay"}


async def test_ids_that_lead_nowhere(backend: Backend) -> None:
    async with backend.world() as world:
        phone = await world.passenger()
        for text in IDS:
            for path in ("/rides", "/matches"):
                response = await phone.http("GET", f"{path}/{text}")
                refused(response, 404, "NOT_FOUND")
            response = await phone.http("GET", f"/users/{text}")
            assert response.status_code in (403, 404), (text, response.text)
            for path in ("/matches/{}/accept", "/rides/{}/start", "/rides/{}/arrive", "/rides/{}/cancel"):
                refused(await phone.http("POST", path.format(text), {}), 404, "NOT_FOUND")
            response = await phone.http("GET", f"/rides?cursor={text}")
            assert response.status_code in (200, 400), (text, response.text)


async def test_the_other_refusals_have_their_codes(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        refused(await passenger.http("GET", "/nowhere"), 404, "NOT_FOUND")
        response = await passenger.http("POST", "/users/me", {})
        refused(response, 405, "METHOD_NOT_ALLOWED")
        assert {"GET", "PATCH", "DELETE"} <= set(response.headers["allow"].replace(" ", "").split(","))
        refused(await passenger.http("GET", f"/users/{driver.user_id}"), 403, "FORBIDDEN")
        refused(await passenger.http("PUT", "/beacon", {"is_active": False}), 403, "FORBIDDEN")
        refused(await driver.http("PUT", "/finder", {"is_active": False}), 403, "FORBIDDEN")
        form = {"full_name": "Budi", "vehicle_type": "car", "vehicle_plate": "B 1 A"}
        refused(await driver.http("POST", "/drivers/register", form), 409, "DRIVER_EXISTS")
        refused(await passenger.http("POST", "/drivers/register", form | {"vehicle_type": "boat"}), 400, "INVALID")
        refused(await passenger.http("POST", "/drivers/register", form | {"vehicle_plate": "?"}), 400, "INVALID")
        refused(await passenger.http("PATCH", "/users/me", {"full_name": "x" * 70_000}), 413, "TOO_LARGE")
        response = await passenger.http("PATCH", "/users/me", {"email": "siti@example.org\r\nBcc: all@example.org"})
        refused(response, 400, "INVALID_EMAIL")
        for number in ("021 5551234", "+1 202 555 0123", "0811CALLNOW", ""):
            refused(await passenger.http("POST", "/auth/otp/generate", {"msisdn": number}), 400, "INVALID_MSISDN")
        wrong = {"msisdn": passenger.msisdn, "otp": "000000"}
        refused(await passenger.http("POST", "/auth/otp/verify", wrong), 401, "OTP_EXPIRED")
        refused(await passenger.http("GET", "/fares/estimate?from=91,0&to=0,0"), 400, "INVALID")
        refused(await passenger.http("GET", "/fares/estimate?from=1"), 400, "INVALID")
        refused(await passenger.http("GET", "/rides?limit=0"), 400, "INVALID")
        refused(await passenger.http("GET", "/schema/nothing"), 404, "NOT_FOUND")


async def test_too_often_says_when_to_come_again(backend: Backend) -> None:
    async with backend.world() as world:
        phone = Phone(world)
        number = {"msisdn": phone.msisdn}
        for _ in range(3):
            assert (await phone.http("POST", "/auth/otp/generate", number)).status_code == 200
        response = await phone.http("POST", "/auth/otp/generate", number)
        refused(response, 429, "RATE_LIMITED")
        assert 890 <= int(response.headers["retry-after"]) <= 900


async def test_a_login_by_hand(backend: Backend) -> None:
    async with backend.world() as world:
        phone = Phone(world)
        sent = await phone.ask("POST", "/auth/otp/generate", {"msisdn": phone.msisdn.replace("+62", "0")})
        assert (sent["expires_in"], len(sent["otp"])) == (300, 6)
        wrong = f"{(int(sent['otp']) + 1) % 1_000_000:06d}"
        response = await phone.http("POST", "/auth/otp/verify", {"msisdn": phone.msisdn, "otp": wrong})
        refused(response, 401, "OTP_INVALID")
        login = await phone.ask("POST", "/auth/otp/verify", {"msisdn": phone.msisdn, "otp": sent["otp"]})
        assert login.keys() == {"token", "refresh_token", "user_id", "role", "expires_at"}
        assert (login["role"], login["expires_at"]) == ("passenger", int(world.clock.seconds()) + 86400)
        again = await phone.http("POST", "/auth/otp/verify", {"msisdn": phone.msisdn, "otp": sent["otp"]})
        refused(again, 401, "OTP_EXPIRED")
        fresh = await phone.ask("POST", "/auth/refresh", {"refresh_token": login["refresh_token"]})
        response = await phone.http("POST", "/auth/refresh", {"refresh_token": login["refresh_token"]})
        refused(response, 401, "UNAUTHENTICATED")
        # One of the two was a thief: the session is over, for its access tokens too.
        refused(await phone.http("GET", "/users/me", token=fresh["token"]), 401, "UNAUTHENTICATED")


async def test_without_the_debug_switch_no_code_is_shown(backend: Backend) -> None:
    async with backend.own_world(auth__otp_debug=False) as world:
        phone = Phone(world)
        sent = await phone.ask("POST", "/auth/otp/generate", {"msisdn": phone.msisdn})
        assert sent.keys() == {"message", "expires_in"}


async def test_a_fault_is_a_problem_too_is_logged_and_says_nothing_of_itself(
    tmp_path: Any,
    sqlite_template: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def logged() -> str:
        # Printed, or through the library's logging where another test has configured it.
        text = capsys.readouterr().out + caplog.text
        caplog.clear()
        return text

    async with Embedded(tmp_path, sqlite_template).own_world() as world:
        phone = await world.passenger()

        async def broken() -> None:
            raise ZeroDivisionError("a secret of the house")

        monkeypatch.setattr(world.app.state, "ping", broken)
        monkeypatch.setattr(world.app.delivery.mailbox, "head", lambda user_id: broken())
        problem = refused(await world.http.get("/health/ready"), 500, "INTERNAL")
        assert "secret" not in problem["detail"]
        assert "ZeroDivisionError" in logged()
        # A phone's socket, likewise.
        with pytest.raises(AssertionError, match="closed with 4500"):
            await (await Phone(world).login()).connect()
        assert "ZeroDivisionError" in logged()
        assert (await phone.say("location.update", {"location": MONAS}))["id"]


async def test_while_the_bus_is_away_nothing_is_a_fault(tmp_path: Any, sqlite_template: Any) -> None:
    async with Embedded(tmp_path, sqlite_template).own_world() as world:
        driver = await world.driver()
        world.app.broker.server.stop()  # type: ignore[attr-defined]
        for method, path, body, status in (
            ("GET", "/users/me", None, 200),
            # What is said in a transaction waits in the outbox.
            ("PATCH", "/users/me", {"full_name": "Budi"}, 200),
            ("GET", f"/users/{NOBODY}", None, 503),
            ("GET", "/rides", None, 200),
            ("POST", f"/rides/{NOBODY}/start", None, 404),
            ("GET", "/admin/streams", None, 503),
            ("GET", "/admin/consumers", None, 503),
            ("GET", "/admin/dead-letters", None, 503),
            ("GET", "/metrics", None, 200),
        ):
            headers = {**driver.bearer, "X-API-Key": DEVELOPMENT_ADMIN_KEY}
            response = await world.http.request(method, path, json=body, headers=headers)
            assert response.status_code == status, (path, response.text)
            if status == 503:
                refused(response, 503, "UNAVAILABLE")
                assert response.headers["retry-after"] == "1"
        world.app.broker.server.start()  # type: ignore[attr-defined]


async def test_a_page_of_an_allowed_origin_may_ask_and_may_read_the_refusal(backend: Backend) -> None:
    async with backend.own_world(web__allowed_origins=["https://app.example"]) as world:
        asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "PATCH"}
        asks |= {"Access-Control-Request-Headers": "authorization, content-type"}
        response = await world.http.options("/users/me", headers=asks)
        assert response.status_code == 204, response.text
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert "PATCH" in response.headers["access-control-allow-methods"]
        response = await world.http.get("/users/me", headers={"Origin": "https://app.example"})
        refused(response, 401, "UNAUTHENTICATED")
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        response = await world.http.get("/users/me", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in response.headers
        assert (await world.http.options("/users/me")).status_code == 204
