"""One phone: logs in by OTP, keeps a socket open, says where it is, and keeps the furthest it has heard.

Over 400 lines because everything here belongs to one connection: what is sent, what is awaited, what is remembered.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import msgspec
from msgspec import Struct, structs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from nebengjek.contracts.geo import Location
from nebengjek.errors import NebengJekError
from nebengjek.simulate.movement import GpsNoise, iso

ANSWER_SECONDS = 8.0
TRIES = 6
WINDOW = 3
"""Points on their way at once; a server that is slower than the phones slows them down, instead of drowning."""
WINDOW_SECONDS = 5.0
ACK_EVERY = 50
TOKEN_ENDED = 4401

MATCH_RANK = {
    "PENDING": 0,
    "DRIVER_CONFIRMED": 1,
    "PASSENGER_CONFIRMED": 1,
    "ACCEPTED": 2,
    "CLOSED": 3,
    "REJECTED": 3,
    "EXPIRED": 3,
    "FAILED": 3,
}
RIDE_RANK = {"PICKUP": 0, "ONGOING": 1, "ARRIVED": 2, "COMPLETED": 3, "CANCELLED": 3}


class PhoneError(NebengJekError):
    """The phone cannot go on: not let in, or no answer after every try."""


class Refused(NebengJekError):
    """The server said no to a command; ``code`` is its reason."""

    def __init__(self, event: str, code: str, message: str) -> None:
        super().__init__(f"{event}: {code} ({message})")
        self.code = code


class Frame(Struct, frozen=True):
    event: str
    data: msgspec.Raw = msgspec.Raw(b"{}")
    seq: int | None = None


class Stored(Struct, frozen=True):
    location: Location


class Refusal(Struct, frozen=True):
    code: str
    message: str = ""
    id: str | None = None
    retry_after: float | None = None


class MatchView(Struct, frozen=True, omit_defaults=True):
    """A proposal as this phone knows it."""

    match_id: str
    passenger_id: str
    driver_id: str
    distance_km: float
    match_status: str
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        return MATCH_RANK[self.match_status] < MATCH_RANK["ACCEPTED"]


class RideView(Struct, frozen=True, omit_defaults=True):
    """A ride as this phone knows it; the bill is in it once it has arrived."""

    ride_id: str
    match_id: str
    driver_id: str
    passenger_id: str
    status: str
    total_cost: int | None = None
    adjusted_cost: int | None = None

    @property
    def rank(self) -> int:
        return RIDE_RANK[self.status]

    @property
    def is_over(self) -> bool:
        return self.rank == RIDE_RANK["COMPLETED"]


class Reason(Struct, frozen=True):
    reason: str


class Active(Struct, frozen=True):
    is_active: bool


class Ready(Struct, frozen=True):
    """What of ``session.ready`` a phone keeps."""

    user_id: str
    epoch: str
    last_seq: int
    replay: str
    beacon: Active | None = None
    finder: Active | None = None
    proposals: list[MatchView] = []
    match: MatchView | None = None
    ride: RideView | None = None


class Heard(Struct, frozen=True):
    """One line of a phone's history: what came (or was acknowledged), about which match or ride, in which state."""

    at: float
    event: str
    id: str
    status: str
    reason: str | None = None


class Tally(Struct):
    """What all phones of a run did together."""

    points: int = 0
    frames_in: int = 0
    bytes_in: int = 0
    commands: int = 0
    repeated: int = 0
    refused: int = 0
    points_refused: int = 0
    unconfirmed: int = 0
    drops: int = 0
    gaps: int = 0
    news: int = 0
    """Frames that must not be missed; when it stands still, so does the run."""


_frame = msgspec.json.Decoder(Frame)
_stored = msgspec.json.Decoder(Stored)
_refusal = msgspec.json.Decoder(Refusal)
_match = msgspec.json.Decoder(MatchView)
_ride = msgspec.json.Decoder(RideView)
_ready = msgspec.json.Decoder(Ready)
_any = msgspec.json.Decoder(dict[str, Any])
_active = msgspec.json.Decoder(Active)
_reason = msgspec.json.Decoder(Reason)
_encode = msgspec.json.Encoder().encode

_RIDE_STATES = {"ride.pickup", "ride.started", "ride.arrived", "ride.completed", "ride.cancelled"}


class Allowance:
    """Frames that may be sent now: the server refuses more than 20 a second a socket, or 40 at once."""

    def __init__(self, rate: float = 18.0, burst: float = 30.0) -> None:
        self._rate = rate
        self._burst = burst
        self._saved = burst
        self._at = time.monotonic()

    async def take(self) -> None:
        """Return when one more frame may be sent."""
        now = time.monotonic()
        self._saved = min(self._burst, self._saved + (now - self._at) * self._rate) - 1
        self._at = now
        if self._saved < 0:
            await asyncio.sleep(-self._saved / self._rate)


class Phone:
    """``async with phone:`` connects and reconnects until the end; ``login`` comes first.

    ``matches`` and ``rides``: the furthest state heard of each, by id. ``history``: everything in order.
    """

    def __init__(self, http: httpx.AsyncClient, msisdn: str, noise: GpsNoise, tally: Tally) -> None:
        self._http = http
        self._msisdn = msisdn
        self._noise = noise
        self._tally = tally
        self.user_id = ""
        self.token = ""
        self.matches: dict[str, MatchView] = {}
        self.rides: dict[str, RideView] = {}
        self._open_matches: dict[str, MatchView] = {}
        self._open_rides: dict[str, RideView] = {}
        self.history: list[Heard] = []
        self.active = False
        """Beacon or finder, as the server sees it."""
        self._socket: ClientConnection | None = None
        self._allowance = Allowance()
        self._waiting: dict[str, asyncio.Future[Frame]] = {}
        self._unconfirmed: dict[tuple[float, float], None] = {}
        self._changed = asyncio.Event()
        self._epoch: str | None = None
        self._last_seq = 0
        self._forgotten = 0
        self._failure: PhoneError | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_ping = 0.0

    # -- HTTP

    async def login(self) -> None:
        """Ask for a code, use it. Raises PhoneError, also where the server keeps the code for itself."""
        sent = await self.ask("POST", "/auth/otp/generate", {"msisdn": self._msisdn})
        if "otp" not in sent:
            raise PhoneError("the server does not return one-time codes: set auth.otp_debug (development only)")
        login = await self.ask("POST", "/auth/otp/verify", {"msisdn": self._msisdn, "otp": sent["otp"]})
        self.token, self.user_id = login["token"], login["user_id"]

    async def register_driver(self, name: str, vehicle_type: str, plate: str) -> None:
        """Become a driver. Raises PhoneError."""
        form = {"full_name": name, "vehicle_type": vehicle_type, "vehicle_plate": plate}
        self.token = (await self.ask("POST", "/drivers/register", form))["token"]

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One HTTP request as this user, tried again while the server is away. Raises PhoneError."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        problem = "no answer"
        for attempt in range(TRIES):
            try:
                answer = await self._http.request(method, path, json=body, headers=headers)
            except httpx.TransportError as error:
                problem = type(error).__name__
            else:
                if answer.is_success:
                    return answer.json()
                problem = f"{answer.status_code} {answer.text[:200]}"
                if answer.status_code not in (429, 503):
                    break
            # Back-off, longer each time: a server that is away or has enough to do.
            await asyncio.sleep(0.2 * (attempt + 1))
        raise PhoneError(f"{method} {path}: {problem}")

    # -- the socket

    async def __aenter__(self) -> "Phone":
        self._task = asyncio.create_task(self._live(), name=f"phone {self.user_id}")
        try:
            await self.until(lambda: self._socket is not None, seconds=60)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _live(self) -> None:
        pause = 0.1
        while True:
            try:
                async with connect(
                    self._address(),
                    additional_headers={"Authorization": f"Bearer {self.token}"},
                    compression=None,
                    open_timeout=30,
                    ping_timeout=60,
                    close_timeout=2,
                    max_queue=256,
                ) as socket:
                    pause = 0.1
                    await self._listen(socket)
            except ConnectionClosed as error:
                if error.rcvd is not None and error.rcvd.code == TOKEN_ENDED:
                    self._fail("the server does not accept the token")
                    return
            except (OSError, InvalidHandshake, InvalidMessage):
                pass
            finally:
                self._socket = None
            self._tally.drops += 1
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)

    def _address(self) -> str:
        url = str(self._http.base_url.join("/ws")).replace("http", "ws", 1)
        if self._epoch is None:
            return url
        return f"{url}?{urlencode({'epoch': self._epoch, 'last_seq': self._last_seq})}"

    async def _listen(self, socket: ClientConnection) -> None:
        self._unconfirmed.clear()
        first = await socket.recv(decode=False)
        self._hear(first)
        self._socket = socket
        self._changed.set()
        while True:
            self._hear(await socket.recv(decode=False))

    def _fail(self, why: str) -> None:
        self._failure = PhoneError(why)
        self._changed.set()

    # -- what comes in

    def _hear(self, text: bytes) -> None:
        tally = self._tally
        tally.frames_in += 1
        tally.bytes_in += len(text)
        frame = _frame.decode(text)
        event = frame.event
        if event == "location.stored":
            self._confirmed(_stored.decode(frame.data).location)
            return
        if event == "ride.tracking":
            return
        if frame.seq is not None and not self._is_next(frame.seq):
            return
        if event in ("ack", "error"):
            self._answered(frame)
        elif event == "session.ready":
            self._begin(_ready.decode(frame.data))
        elif event in _RIDE_STATES:
            self._hear_ride(event, _ride.decode(frame.data))
        elif event in ("match.found", "match.accepted", "match.rejected"):
            self._hear_match(event, _match.decode(frame.data))
        elif event in ("user.beacon", "user.finder"):
            self.active = _active.decode(frame.data).is_active
        elif event == "match.unavailable":
            self._unavailable(_reason.decode(frame.data).reason)
        self._changed.set()

    def _is_next(self, seq: int) -> bool:
        """False for a frame that this phone has had."""
        if seq <= self._last_seq:
            return False
        self._tally.gaps += seq - self._last_seq - 1
        self._tally.news += 1
        self._last_seq = seq
        return True

    def _begin(self, ready: Ready) -> None:
        if ready.replay != "complete":
            self._last_seq = ready.last_seq
            for lost in self._open_matches.keys() - {match.match_id for match in ready.proposals}:
                self._hear_match("session.ready", structs.replace(self.matches[lost], match_status="EXPIRED"))
            for match in (*ready.proposals, *([ready.match] if ready.match else [])):
                self._hear_match("session.ready", match)
            if ready.ride is not None:
                self._hear_ride("session.ready", ready.ride)
        self._epoch = ready.epoch
        active = ready.beacon or ready.finder
        self.active = active is not None and active.is_active

    def _hear_ride(self, event: str, ride: RideView) -> None:
        self.note(event, ride.ride_id, ride.status)
        known = self.rides.get(ride.ride_id)
        if known is None or ride.rank >= known.rank:
            self.rides[ride.ride_id] = ride
            if ride.is_over:
                self._open_rides.pop(ride.ride_id, None)
            else:
                self._open_rides[ride.ride_id] = ride

    def _hear_match(self, event: str, match: MatchView) -> None:
        self.note(event, match.match_id, match.match_status, match.reason)
        known = self.matches.get(match.match_id)
        if known is None or MATCH_RANK[match.match_status] >= MATCH_RANK[known.match_status]:
            self.matches[match.match_id] = match
            if match.is_open:
                self._open_matches[match.match_id] = match
            else:
                self._open_matches.pop(match.match_id, None)

    def _unavailable(self, reason: str) -> None:
        self.note("match.unavailable", self.user_id, reason)
        if reason != "no_drivers":
            self.active = False

    def note(self, event: str, about: str, status: str, reason: str | None = None) -> None:
        """Write a line into the history."""
        self.history.append(Heard(time.monotonic(), event, about, status, reason))

    def _answered(self, frame: Frame) -> None:
        answer = _any.decode(frame.data)
        waiter = self._waiting.get(str(answer.get("id")))
        if waiter is not None and not waiter.done():
            waiter.set_result(frame)
        elif frame.event == "error":
            self._tally.refused += 1
            self._tally.points_refused += answer["code"] == "POINT_REFUSED"
            self.note("error", self.user_id, str(answer["code"]), str(answer.get("message")))

    def _confirmed(self, place: Location) -> None:
        key = (place.latitude, place.longitude)
        if key not in self._unconfirmed:
            return
        was_full = len(self._unconfirmed) >= WINDOW
        for sent in list(self._unconfirmed):
            del self._unconfirmed[sent]
            if sent == key:
                break
        if was_full or not self._unconfirmed:
            self._changed.set()

    # -- what goes out

    async def until(self, condition: Callable[[], Any], *, seconds: float | None = None) -> bool:
        """Wait for ``condition``, looked at whenever something was heard; False when the time is over.

        Raises PhoneError when this phone was locked out.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not condition():
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
        return True

    def wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()

    async def command(self, event: str, data: dict[str, Any], *, timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Say it until it is answered, with the same id; what the acknowledgement carries.

        Raises Refused with the server's code, PhoneError after ``TRIES`` without an answer.
        """
        frame_id = str(uuid4())
        self._tally.commands += 1
        for attempt in range(TRIES):
            waiter: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
            self._waiting[frame_id] = waiter
            try:
                async with asyncio.timeout(timeout):
                    await self._say({"event": event, "data": data, "id": frame_id})
                    answer = await waiter
            except TimeoutError:
                self._tally.repeated += 1
                continue
            finally:
                del self._waiting[frame_id]
            if answer.event == "ack":
                return _any.decode(answer.data)
            refusal = _refusal.decode(answer.data)
            if refusal.code not in ("RATE_LIMITED", "UNAVAILABLE"):
                raise Refused(event, refusal.code, refusal.message)
            self._tally.repeated += 1
            await asyncio.sleep(refusal.retry_after or 0.2 * (attempt + 1))
        raise PhoneError(f"{event}: no answer after {TRIES} tries")

    async def ping(self, place: Location, at: float) -> None:
        """Report ``place`` (with this phone's error) at the simulated time ``at``, when there is room for it."""
        at = max(at, self._last_ping + 0.01)
        self._last_ping = at
        seen = self._noise.seen(place, at)
        if len(self._unconfirmed) >= WINDOW and not await self._has_room():
            self._tally.unconfirmed += len(self._unconfirmed)
            self._unconfirmed.clear()
        key = (seen.latitude, seen.longitude)
        self._unconfirmed.pop(key, None)
        self._unconfirmed[key] = None
        self._tally.points += 1
        await self._say({"event": "location.update", "data": {"location": self.point(seen, at)}})

    async def _has_room(self) -> bool:
        return await self.until(lambda: len(self._unconfirmed) < WINDOW, seconds=WINDOW_SECONDS)

    def point(self, place: Location, at: float) -> dict[str, Any]:
        """A location as frames carry it: where, when by this phone's clock, how sure."""
        return {
            "latitude": place.latitude,
            "longitude": place.longitude,
            "timestamp": iso(at),
            "accuracy": self._noise.radius_m,
        }

    def here(self, place: Location, at: float) -> dict[str, Any]:
        """``point`` with this phone's error, for beacon and finder."""
        at = max(at, self._last_ping + 0.01)
        self._last_ping = at
        return self.point(self._noise.seen(place, at), at)

    async def settled(self, seconds: float = WINDOW_SECONDS) -> bool:
        """Wait until the server has confirmed every point sent."""
        return await self.until(lambda: not self._unconfirmed, seconds=seconds)

    async def _say(self, frame: dict[str, Any]) -> None:
        text = _encode(frame)
        while True:
            await self._allowance.take()
            await self.until(lambda: self._socket is not None)
            socket = self._socket
            if socket is None:
                continue
            try:
                await socket.send(text, text=True)
            except ConnectionClosed:
                # The reader notices by itself and connects again.
                await asyncio.sleep(0.05)
            else:
                break
        if self._last_seq - self._forgotten >= ACK_EVERY:
            self._forgotten = self._last_seq
            await self._say({"event": "session.ack", "data": {"seq": self._last_seq}})

    # -- what is going on

    @property
    def last_ping(self) -> float:
        """The simulated time of the last point."""
        return self._last_ping

    def open_ride(self) -> RideView | None:
        """The ride that has not ended."""
        return next(iter(self._open_rides.values()), None)

    def open_matches(self) -> list[MatchView]:
        """Proposals that can still be answered, nearest first."""
        return sorted(self._open_matches.values(), key=lambda match: match.distance_km)

    def is_over(self, ride_id: str) -> bool:
        ride = self.rides.get(ride_id)
        return ride is not None and ride.is_over
