"""Pushes, to a push service that decrypts them as a browser would, and to one that speaks FCM's HTTP v1."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import http_ece
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nebengjek.contracts.rides import RidePayment
from nebengjek_plugins.notifications.push import padless, point_of, unpadded
from tests.flows.conftest import Backend
from tests.flows.world import MONAS, Phone, World
from tests.plugins.test_notifications_mail import dead, letters

WAIT = 60.0
SECRET = bytes(range(16))
SERVER_KEY = ec.derive_private_key(987_654_321, ec.SECP256R1())
VAPID = padless((987_654_321).to_bytes(32))


class Service:
    """A push service: each request that it got, and how it answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[str], tuple[str, bytes]] = lambda _: ("201 Created", b"")
        self.origin = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        path = first.split()[1]
        self.requests.append((path, headers, body))
        status, content = self.answer(path)
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n".encode() + content
        )
        await writer.drain()

    async def asked(self, times: int) -> None:
        async with asyncio.timeout(WAIT):
            while len(self.requests) < times:  # noqa: ASYNC110 - it is counted, it does not tell
                await asyncio.sleep(0.01)


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    found = Service()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield found


def pushing(found: Service, **values: Any) -> dict[str, Any]:
    table = {"vapid_key": VAPID, "push_hosts": [found.origin], "language": "en", **values}
    return {"plugins": ["nebengjek_plugins.notifications:notifications"], "plugin": {"notifications": table}}


class Browser:
    """What a browser keeps of a subscription, and how it reads a push."""

    def __init__(self, origin: str, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.path = f"/push/{name}"
        self.subscription = {
            "endpoint": origin + self.path,
            "keys": {"p256dh": padless(point_of(self.key)), "auth": padless(SECRET)},
        }

    def read(self, found: Service) -> list[dict[str, Any]]:
        return [
            json.loads(http_ece.decrypt(body, private_key=self.key, auth_secret=SECRET))
            for path, _, body in found.requests
            if path == self.path
        ]


async def subscribed(world: World, phone: Phone, found: Service, name: str) -> tuple[Browser, str]:
    browser = Browser(found.origin, name)
    device = await phone.ask("PUT", "/users/me/push-subscriptions", browser.subscription)
    return browser, device["device_id"]


async def test_an_offer_wakes_who_has_no_socket_and_nobody_else(backend: Backend) -> None:
    async with service() as found, backend.own_world(**pushing(found)) as world:
        budi, ani = await world.driver(), await world.passenger()
        at_budi, _ = await subscribed(world, budi, found, "budi")
        at_ani, _ = await subscribed(world, ani, found, "ani")
        await budi.say("user.beacon", {"is_active": True, "location": MONAS})
        await world.quiet()
        await world.hang_up(budi)
        await ani.say("user.finder", {"is_active": True, "location": MONAS, "target_location": MONAS})
        offer = (await ani.expect("match.found"))["data"]
        await found.asked(1)
        await world.quiet()
        (told,) = at_budi.read(found)
        assert told["title"] == "A passenger"
        assert told["data"] == {"event": "match.found", "id": offer["match_id"]}
        assert at_ani.read(found) == []
        _, headers, _ = found.requests[0]
        assert 0 < int(headers["ttl"]) <= 30
        assert (headers["urgency"], headers["content-encoding"]) == ("high", "aes128gcm")
        scheme, token, key = headers["authorization"].replace("t=", "").replace("k=", "").replace(",", "").split()
        assert (scheme, unpadded(key)) == ("vapid", point_of(SERVER_KEY))
        claims = jwt.decode(
            token, SERVER_KEY.public_key(), algorithms=["ES256"], audience=found.origin, options={"verify_exp": False}
        )
        assert claims["sub"].startswith("mailto:")


def refused(user_id: str, attempt: int = 1) -> RidePayment:
    ids = {name: f"019a0000-0000-7000-8000-00000000000{number}" for number, name in enumerate(("ride", "match", "pay"))}
    return RidePayment(
        ride_id=ids["ride"],
        match_id=ids["match"],
        driver_id="019a0000-0000-7000-8000-000000000009",
        passenger_id=user_id,
        version=attempt,
        payment_id=ids["pay"],
        status="REJECTED",
        attempt=attempt,
        amount=12_000,
    )


async def test_one_push_for_each_cause_and_device_in_his_language(backend: Backend) -> None:
    async with service() as found, backend.own_world(**pushing(found)) as world:
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me/notifications", {"language": "id"})
        first, _ = await subscribed(world, ani, found, "first")
        second, _ = await subscribed(world, ani, found, "second")
        again, _ = await subscribed(world, ani, found, "second")
        handler = world.handler("notifications", RidePayment)
        # As pods that have the same in hand at once.
        await asyncio.gather(*(handler(refused(ani.user_id)) for _ in range(3)))
        await world.quiet()
        assert [one["title"] for one in first.read(found)] == ["Pembayaran ditolak"]
        assert [one["body"] for one in again.read(found)] == ["Pembayaran Rp 12.000 ditolak. Silakan coba lagi."]
        assert second.path == again.path
        assert len(found.requests) == 2
        await ani.ask("PATCH", "/users/me/notifications", {"push": False})
        await handler(refused(ani.user_id, 2))
        await world.quiet()
        assert len(found.requests) == 2


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
async def test_a_device_that_is_gone_is_forgotten(embedded: Backend, status: str) -> None:
    async with service() as found, embedded.own_world(**pushing(found)) as world:
        ani = await Phone(world).login()
        await subscribed(world, ani, found, "gone")
        found.answer = lambda _: (status, b"")
        await world.handler("notifications", RidePayment)(refused(ani.user_id))
        await world.quiet()
        known = await ani.ask("GET", "/users/me/push-subscriptions")
        assert known == {"items": [], "vapid_public_key": padless(point_of(SERVER_KEY))}
        assert await letters(world) == []


async def test_a_service_that_is_busy_is_asked_again_and_one_that_refuses_is_not(embedded: Backend) -> None:
    async with service() as found, embedded.own_world(**pushing(found)) as world:
        ani = await Phone(world).login()
        browser, device_id = await subscribed(world, ani, found, "busy")
        handler = world.handler("notifications", RidePayment)
        found.answer = lambda _: ("503 Busy", b"")
        await handler(refused(ani.user_id))
        await found.asked(1)
        found.answer = lambda _: ("201 Created", b"")
        await world.quiet()
        assert len(browser.read(found)) == 2
        found.answer = lambda _: ("413 Too Large", b"")
        await handler(refused(ani.user_id, 2))
        letter = await dead(world)
        assert letter["consumer"] == "notification_push_notifications_push"
        assert browser.path not in str(letter["error"])
        assert len(found.requests) == 3
        stranger = await Phone(world).login()
        path = f"/users/me/push-subscriptions/{device_id}"
        assert (await stranger.http("DELETE", path)).status_code == 404
        assert (await ani.http("DELETE", path)).status_code == 204


async def test_news_that_nobody_needs_any_more_are_left_out(embedded: Backend) -> None:
    async with service() as found, embedded.own_world(**pushing(found)) as world:
        ani = await Phone(world).login()
        await subscribed(world, ani, found, "late")
        found.answer = lambda _: ("503 Busy", b"")
        await world.handler("notifications", RidePayment)(refused(ani.user_id))
        await found.asked(1)
        world.clock.advance(3601)
        found.answer = lambda _: ("201 Created", b"")
        await world.quiet()
        assert len(found.requests) == 1


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://fcm.googleapis.com/x",
        "https://127.0.0.1/x",
        "https://fcm.googleapis.com.evil.example/x",
        "https://evilpush.apple.com/x",
        "https://fcm.googleapis.com:8443/x",
        "https://me@fcm.googleapis.com/x",
        "https://fcm.googleapis.com@127.0.0.1/x",
        "https://[::1/x",
        "file:///etc/passwd",
    ],
)
async def test_we_call_nobody_but_push_services(embedded: Backend, endpoint: str) -> None:
    async with embedded.own_world(plugins=["nebengjek_plugins.notifications:notifications"]) as world:
        ani = await Phone(world).login()
        wanted = Browser("", "x").subscription | {"endpoint": endpoint}
        answer = await ani.http("PUT", "/users/me/push-subscriptions", wanted)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID")
        good = wanted | {"endpoint": "https://web.push.apple.com/x"}
        assert (await ani.http("PUT", "/users/me/push-subscriptions", good)).status_code == 200
        short = good | {"keys": {"p256dh": "AAAA", "auth": "AAAA"}}
        assert (await ani.http("PUT", "/users/me/push-subscriptions", short)).status_code == 400


async def test_an_app_is_told_over_fcm(embedded: Backend, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    async with service() as found:
        account = {
            "project_id": "nebengjek",
            "client_email": "push@nebengjek.example",
            "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "token_uri": f"{found.origin}/token",
        }
        file = tmp_path / "account.json"
        file.write_text(json.dumps(account), encoding="utf-8")
        token = b'{"access_token": "bearer-1", "expires_in": 3599, "token_type": "Bearer"}'
        found.answer = lambda path: ("200 OK", token if path == "/token" else b"{}")
        values = {"fcm_credentials": str(file), "fcm_url": found.origin}
        async with embedded.own_world(**pushing(found, **values)) as world:
            ani = await Phone(world).login()
            await ani.ask("PUT", "/users/me/push-subscriptions", {"fcm_token": "device-token"})
            handler = world.handler("notifications", RidePayment)
            await handler(refused(ani.user_id))
            await world.quiet()
            (asking, _, form), (path, headers, body) = found.requests
            assert (asking, path) == ("/token", "/v1/projects/nebengjek/messages:send")
            claims = jwt.decode(
                parse_qs(form.decode())["assertion"][0],
                key.public_key(),
                algorithms=["RS256"],
                audience=account["token_uri"],
                options={"verify_exp": False, "verify_iat": False},
            )
            assert claims["iss"] == account["client_email"]
            assert headers["authorization"] == "Bearer bearer-1"
            message = json.loads(body)["message"]
            assert (message["token"], message["notification"]["title"]) == ("device-token", "The payment was refused")
            assert message["android"]["priority"] == "HIGH"
            found.answer = lambda _: ("404 Not Found", b"{}")
            await handler(refused(ani.user_id, 2))
            await world.quiet()
            assert len(found.requests) == 3
            assert (await ani.ask("GET", "/users/me/push-subscriptions"))["items"] == []
