"""A whole NebengJek on loopback, and people who use it with HTTP and WebSocket as their phones would."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from nebengjek.app import App
from nebengjek.clock import ManualClock
from nebengjek.contracts.message import Event
from nebengjek.server import Server
from nebengjek.settings import Settings

T = TypeVar("T")

WAIT = 30.0
"""Seconds of patience: machines are shared, and who fails may take his time."""
NIGHT = 3 * 3600.0
"""Longer than any deadline of a search, a proposal, a pick-up or a payment."""
MONAS = {"latitude": -6.1754, "longitude": 106.8272}
BUNDARAN_HI = {"latitude": -6.1950, "longitude": 106.8230}
KOTA_TUA = {"latitude": -6.1352, "longitude": 106.8133}

_numbers = itertools.count(10_000_000)
_plates = itertools.count(1)


class Refused(Exception):
    """An ``error`` frame, or a problem+json answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def moved(place: dict[str, float], north_m: float = 0.0, east_m: float = 0.0) -> dict[str, float]:
    """``place`` so many metres away (good near the equator)."""
    return {
        "latitude": place["latitude"] + north_m / 111_195,
        "longitude": place["longitude"] + east_m / 110_600,
    }


class Phone:
    """One person: his tokens, his socket, every frame he was sent."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.msisdn = f"+62811{next(_numbers)}"
        self.user_id = ""
        self.token = ""
        self.refresh_token = ""
        self.frames: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self._news = asyncio.Condition()
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    # -- HTTP

    @property
    def bearer(self) -> dict[str, str]:
        """The header that says who is asking."""
        return {"Authorization": f"Bearer {self.token}"}

    async def http(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> httpx.Response:
        bearer = token if token is not None else self.token
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return await self.world.http.request(method, path, json=body, headers=headers)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The body of a success; raises Refused."""
        response = await self.http(method, path, body)
        if response.is_success:
            return response.json() if response.content else None
        problem = response.json()
        assert response.headers["content-type"].startswith("application/problem+json")
        raise Refused(problem["code"], problem["detail"])

    async def login(self) -> Self:
        sent = await self.ask("POST", "/auth/otp/generate", {"msisdn": self.msisdn})
        login = await self.ask("POST", "/auth/otp/verify", {"msisdn": self.msisdn, "otp": sent["otp"]})
        self.user_id, self.token, self.refresh_token = login["user_id"], login["token"], login["refresh_token"]
        return self

    async def become_driver(self, name: str = "Budi") -> Self:
        form = {"full_name": name, "vehicle_type": "motorcycle", "vehicle_plate": f"B {next(_plates)} XYZ"}
        self.token = (await self.ask("POST", "/drivers/register", form))["token"]
        return self

    # -- socket

    async def connect(self, query: str = "") -> dict[str, Any]:
        """Connect; the data of ``session.ready``."""
        url = self.world.url.replace("http", "ws") + "/ws" + query
        headers = {"Authorization": f"Bearer {self.token}"}
        self._socket = await connect(url, additional_headers=headers, compression=None, max_size=None)
        self.close_code = None
        seen = len(self.frames)
        self._reader = asyncio.create_task(self._read(self._socket))
        ready = await self.find(lambda frame: frame["event"] == "session.ready", since=seen)
        return ready["data"]  # type: ignore[no-any-return]

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                async with self._news:
                    self.frames.append(msgspec.json.decode(text))
                    self._news.notify_all()
        except ConnectionClosed:
            pass
        async with self._news:
            self.close_code = socket.close_code
            self._news.notify_all()

    async def disconnect(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await self._reader
        self._socket = None

    async def closed(self) -> int:
        """The code with which the server closed the socket."""
        async with asyncio.timeout(WAIT), self._news:
            await self._news.wait_for(lambda: self.close_code is not None)
        assert self.close_code is not None
        return self.close_code

    async def raw(self, text: str | bytes) -> None:
        assert self._socket is not None
        await self._socket.send(text)

    async def tell(self, event: str, data: Any, frame_id: str | None = None) -> None:
        """Send a frame, wait for nothing."""
        frame = {"event": event, "data": data} | ({"id": frame_id} if frame_id else {})
        await self.raw(msgspec.json.encode(frame).decode())

    async def say(self, event: str, data: Any, frame_id: str | None = None) -> dict[str, Any]:
        """Send a frame and return the data of its ack; raises Refused."""
        frame_id = frame_id or str(uuid4())
        seen = len(self.frames)
        await self.tell(event, data, frame_id)
        answer = await self.find(
            lambda frame: frame["event"] in ("ack", "error") and frame["data"].get("id") == frame_id, since=seen
        )
        if answer["event"] == "error":
            raise Refused(answer["data"]["code"], answer["data"]["message"])
        return answer["data"]  # type: ignore[no-any-return]

    async def find(self, wanted: Callable[[dict[str, Any]], bool], *, since: int = 0) -> dict[str, Any]:
        """The first frame from number ``since`` on that is ``wanted``; waits for it."""

        looked = since
        try:
            async with asyncio.timeout(WAIT), self._news:
                while True:
                    while looked < len(self.frames):
                        if wanted(self.frames[looked]):
                            return self.frames[looked]
                        looked += 1
                    if self.close_code is not None:
                        raise AssertionError(f"closed with {self.close_code}; {self.frames[since:]}")
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not among {self.frames[since:]}") from None

    async def expect(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first frame of this type whose data has these fields; waits for it."""

        def wanted(frame: dict[str, Any]) -> bool:
            data = frame.get("data", {})
            return frame["event"] == event and all(data.get(key) == value for key, value in fields.items())

        return await self.find(wanted)

    def count(self, event: str, **fields: Any) -> int:
        return sum(
            1
            for frame in self.frames
            if frame["event"] == event and all(frame["data"].get(k) == v for k, v in fields.items())
        )

    async def expect_once(self, event: str, **fields: Any) -> None:
        """Such a frame comes, and when everything that was said has been handled it is the only one."""
        await self.expect(event, **fields)
        await self.world.quiet()
        assert self.count(event, **fields) == 1

    async def point(self, place: dict[str, float], **more: Any) -> None:
        """Report a point at the world's time, and wait until it is stored."""
        stamp = self.world.clock.now().isoformat()
        await self.say("location.update", {"location": {**place, "timestamp": stamp, **more}})


@dataclass
class World:
    """``restart`` ends the application (``kill``: without draining) and starts it again on the same stores."""

    make: Callable[[ManualClock], App]
    clock: ManualClock
    app: App = field(init=False)
    server: Server = field(init=False)
    http: httpx.AsyncClient = field(init=False)
    phones: list[Phone] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url

    async def start(self) -> None:
        self.app = self.make(self.clock)
        # As uvicorn's serve() does, without its main loop, which looks for a signal ten times a second.
        self.server = Server(self.app)
        self.server.config.load()
        self.server.lifespan = self.server.config.lifespan_class(self.server.config)
        await self.server.startup()
        assert self.server.started, "the server did not start"
        self.http = httpx.AsyncClient(base_url=self.url, timeout=WAIT, verify=False)

    async def stop(self) -> None:
        await self.http.aclose()
        # As uvicorn's shutdown() does, without the tenths of a second for which it sleeps.
        for listener in self.server.servers:
            listener.close()
        self.app.closing()
        state = self.server.server_state
        for connection in list(state.connections):
            connection.shutdown()
        async with asyncio.timeout(WAIT):
            while state.connections or state.tasks:  # noqa: ASYNC110 - uvicorn polls too
                await asyncio.sleep(0)
        await self.server.lifespan.shutdown()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def passenger(self) -> Phone:
        phone = await Phone(self).login()
        self.phones.append(phone)
        await phone.connect()
        return phone

    async def driver(self) -> Phone:
        phone = await (await Phone(self).login()).become_driver()
        self.phones.append(phone)
        await phone.connect()
        return phone

    async def advance(self, seconds: float) -> None:
        """Move the clock and let the application look at it."""
        self.clock.advance(seconds)
        await self.app.sweep()

    def handler(self, module: str, event: type[Event]) -> Callable[..., Awaitable[Any]]:
        """What a module does when it hears such an event."""
        hears = next(one.hears for one in self.app.modules if one.name == module)
        return next(hearing.handler for hearing in hears if hearing.event is event)

    async def sweeping(self, awaited: Coroutine[Any, Any, T]) -> T:
        """Wait for it, and let the application sweep meanwhile: in life it does so each second."""
        waiting = asyncio.create_task(awaited)
        while not (await asyncio.wait([waiting], timeout=0.05))[0]:
            await self.app.sweep()
        return waiting.result()

    async def hang_up(self, phone: Phone) -> None:
        """Disconnect, and wait until the application has noticed."""
        await phone.disconnect()
        presence = self.app.delivery.presence
        async with asyncio.timeout(WAIT):
            while await presence.connected([phone.user_id]):  # noqa: ASYNC110 - presence is asked, it does not tell
                await asyncio.sleep(0)

    async def quiet(self) -> None:
        """Wait until every event that was said has been handled by whoever hears it, and what they said, too."""
        seen: tuple[int, int] | None = None
        async with asyncio.timeout(WAIT):
            # Twice the same: between two looks a handler may have said something that was in neither place.
            while (now := await self._said_and_waiting()) != seen or now[1]:
                seen = now
                await asyncio.sleep(0.002)

    async def _said_and_waiting(self) -> tuple[int, int]:
        """How many events were ever published, and how many wait in the outbox or for a consumer."""
        waiting = await self.app.bus.outbox.size()
        streams = await self.app.broker.streams()
        for stream in streams:
            consumers = await self.app.broker.consumers(stream.spec.name)
            waiting += sum(one.num_pending + one.num_ack_pending for one in consumers)
        return sum(stream.last_seq for stream in streams), waiting

    async def night(self) -> None:
        """Everybody goes home, and what nobody has ended ends by its own deadline."""
        for phone in self.phones:
            await phone.disconnect()
        people = [phone.user_id for phone in self.phones]
        self.phones.clear()
        delivery = self.app.delivery
        async with asyncio.timeout(WAIT):
            # Presence hears of it last; whom it does not miss yet when the night comes is about in the morning.
            while delivery.sockets or await delivery.presence.connected(people):  # noqa: ASYNC110 - nor do they tell
                await asyncio.sleep(0)
        await self.advance(NIGHT)
        await self.quiet()

    # -- the steps of a ride

    async def pair(self, driver: Phone, passenger: Phone, at: dict[str, float] = MONAS) -> str:
        """Beacon, finder, proposal; the match id."""
        seen = len(passenger.frames)
        await driver.say("user.beacon", {"is_active": True, "location": at})
        await passenger.say(
            "user.finder", {"is_active": True, "location": moved(at, 20), "target_location": BUNDARAN_HI}
        )
        # After another ride the news of its end may come last: then the sweep finds the two.
        found = await self.sweeping(
            passenger.find(
                lambda one: one["event"] == "match.found" and one["data"]["driver_id"] == driver.user_id, since=seen
            )
        )
        match_id: str = found["data"]["match_id"]
        await driver.expect("match.found", match_id=match_id)
        return match_id

    async def pickup(self, driver: Phone, passenger: Phone, at: dict[str, float] = MONAS) -> str:
        """As ``pair``, then both accept; the ride id."""
        match_id = await self.pair(driver, passenger, at)
        await driver.say("match.accept", {"match_id": match_id})
        await passenger.say("match.accept", {"match_id": match_id})
        await passenger.expect("ride.pickup", match_id=match_id)
        ride_id: str = (await driver.expect("ride.pickup", match_id=match_id))["data"]["ride_id"]
        return ride_id

    async def start_ride(self, driver: Phone, passenger: Phone) -> str:
        """As ``pickup``, both at the same place, then the ride starts; the ride id."""
        ride_id = await self.pickup(driver, passenger)
        self.clock.advance(10)
        await driver.point(MONAS)
        await passenger.point(MONAS)
        await driver.say("ride.start", {"ride_id": ride_id})
        await driver.expect("ride.started", ride_id=ride_id)
        await passenger.expect("ride.started", ride_id=ride_id)
        return ride_id

    async def drive(self, driver: Phone, metres: float, *, step: float = 100.0, begin: float = 0.0) -> float:
        """Drive north from Monas, ``step`` metres a point at 36 km/h; the kilometres driven."""
        done = begin
        while done < begin + metres - 1e-6:
            done = min(done + step, begin + metres)
            self.clock.advance(step / 10)
            await driver.point(moved(MONAS, done))
        return metres / 1000


@asynccontextmanager
async def running(make: Callable[[ManualClock], App]) -> AsyncIterator[World]:
    world = World(make, ManualClock())
    await world.start()
    try:
        yield world
    finally:
        for phone in world.phones:
            await phone.disconnect()
        await world.stop()


def settings_for(database_url: str, **values: Any) -> Settings:
    """The test profile with this database; ``values``: dotted keys with ``__`` for the dot."""
    given: dict[str, Any] = {"profile": "test", "database": {"url": database_url}}
    given["auth"] = {"otp_debug": True, "otp_per_address": 0}
    given["web"] = {"port": 0, "frames_per_second": 10_000, "frame_burst": 10_000}
    given["web"] |= {"commands_per_second": 10_000, "command_burst": 10_000}
    for key, value in values.items():
        section, _, name = key.partition("__")
        if name:
            given.setdefault(section, {})[name] = value
        else:
            given[section] = value
    return msgspec.convert(given, Settings)
