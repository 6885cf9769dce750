"""Drivers and passengers: what they want, how they answer, and how they drive; each has one phone.

A driver moves his passenger's phone too while they sit in the same car.
"""

import asyncio
import random
import time

from msgspec import Struct

from nebengjek.contracts.geo import Location, distance_km
from nebengjek.errors import NebengJekError
from nebengjek.simulate.movement import Leg, SimulatedClock, leg
from nebengjek.simulate.phone import RIDE_RANK, Phone, Refused, RideView, Tally

CRUISE_PING_SECONDS = 30.0
PARKED_PING_REAL = 10.0
WAITING_PING_REAL = 5.0
NEAR_ENOUGH_KM = 2.0
"""An empty car that was called to a waiting passenger need not come closer than this to be proposed to him."""
STUCK_SECONDS = 180.0
PENDING_SECONDS = 5.0
PAYMENT_TRIES = 20
"""Real seconds without the state that must come next."""
START_TRIES = 20
DECLINED_SHARE = 0.1
"""Passengers whose first payment is declined."""
DISCOUNT_SHARE = 0.3
"""Drivers who ask for less than the meter shows."""


class Stuck(NebengJekError):
    """What must come next did not come; the text says what and for whom."""


class Wish(Struct, frozen=True, kw_only=True):
    """One trip of one passenger, and what fate has decided about it."""

    trip_id: str
    start: Location
    end: Location
    departs: float
    """Simulated seconds after the start of the run."""
    cancelled_by: str | None = None
    """``driver`` or ``passenger``: at ``cancel_share`` of the way to the pick-up."""
    cancel_share: float = 0.0
    declines_first: bool = False
    factor: float | None = None


class Outcome(Struct, kw_only=True):
    """What the client knows of one trip; times are simulated, distances what the car really drove."""

    trip_id: str
    passenger_id: str = ""
    driver_id: str = ""
    ride_id: str = ""
    match_id: str = ""
    state: str = "waiting"
    """``waiting``, ``riding``, ``paid``, ``cancelled`` or ``failed``."""
    searches: int = 0
    asked_at: float = 0.0
    matched_at: float = 0.0
    matched_seconds_real: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    pickup_km: float = 0.0
    true_km: float = 0.0
    factor: float | None = None
    refused_payments: int = 0
    problem: str | None = None


class City(Struct, kw_only=True):
    """What everybody shares: the clock, the pace, who is who, and who waits for a car in vain."""

    clock: SimulatedClock
    ping_seconds: float
    noise_m: float
    accept: float
    tally: Tally
    outcomes: dict[str, Outcome]
    passengers: "dict[str, Passenger]"
    drivers: "dict[str, Driver]"
    closing: bool = False
    phones: dict[str, Phone] = {}
    """Everybody's phone by user id, also of those who have left: their histories are evidence."""

    def call_a_car(self, passenger: "Passenger") -> None:
        """Send the nearest parked driver towards a passenger around whom there is none."""
        if any(driver.errand is passenger for driver in self.drivers.values()):
            return
        parked = [driver for driver in self.drivers.values() if driver.is_parked]
        if parked:
            nearest = min(parked, key=lambda driver: distance_km(driver.place, passenger.wish.start))
            nearest.errand = passenger
            nearest.phone.wake()


class Pace:
    """The times of a drive: each step takes its simulated seconds, however late the step before was confirmed.

    A step that comes late by the real clock keeps its own time by the phone's, or the car would seem to jump.
    """

    def __init__(self, clock: SimulatedClock, way: Leg) -> None:
        self._at = clock.now()
        self._seconds = way.step_seconds
        self._real = clock.to_real(way.step_seconds)
        self._due = time.monotonic()

    async def step(self) -> float:
        """Return when the next step is done: its simulated time."""
        now = time.monotonic()
        self._due = max(self._due + self._real, now)
        await asyncio.sleep(self._due - now)
        self._at += self._seconds
        return self._at


class Passenger:
    """One person with one wish."""

    def __init__(self, city: City, phone: Phone, wish: Wish) -> None:
        self.city = city
        self.phone = phone
        self.wish = wish
        self.outcome = city.outcomes[wish.trip_id]
        self._hopeless: set[str] = set()

    async def travel(self) -> None:
        """From the login to the paid ride. Raises Stuck, PhoneError, Refused."""
        await self.phone.login()
        self.outcome.passenger_id = self.phone.user_id
        self.city.passengers[self.phone.user_id] = self
        self.city.phones[self.phone.user_id] = self.phone
        async with self.phone:
            ride = await self._find_ride()
            self.outcome.state = "riding"
            await self._ride_along(ride)
            await self.phone.until(lambda: not self.phone.open_matches(), seconds=40)

    @property
    def is_waiting(self) -> bool:
        return self.outcome.state == "waiting" and self.phone.open_ride() is None

    # -- finding a driver

    async def _find_ride(self) -> RideView:
        asked = time.monotonic()
        self.outcome.asked_at = self.city.clock.now()
        await self._search()
        while (ride := self.phone.open_ride()) is None:
            match = next((m for m in self.phone.open_matches() if m.match_id not in self._hopeless), None)
            if match is not None:
                await self._accept(match.match_id)
            elif not self.phone.active and not self._is_promised():
                await self._search()
            else:
                await self._wait_for_news()
        self.outcome.matched_at = self.city.clock.now()
        self.outcome.matched_seconds_real = time.monotonic() - asked
        return ride

    def _is_promised(self) -> bool:
        return any(match.match_status == "ACCEPTED" for match in self.phone.matches.values())

    async def _wait_for_news(self) -> None:
        def news() -> bool:
            phone = self.phone
            fresh = any(match.match_id not in self._hopeless for match in phone.open_matches())
            return fresh or phone.open_ride() is not None or not (phone.active or self._is_promised())

        if not await self.phone.until(news, seconds=WAITING_PING_REAL):
            await self.phone.ping(self.wish.start, self.city.clock.now())
            if not self.phone.open_matches() and not self._is_promised():
                self.city.call_a_car(self)

    async def _search(self) -> None:
        """Switch the finder on; what stands in the way is a match that ends or becomes a ride by itself."""
        phone, wish = self.phone, self.wish
        self.outcome.searches += 1
        frame = {
            "is_active": True,
            "location": phone.here(wish.start, self.city.clock.now()),
            "target_location": {"latitude": wish.end.latitude, "longitude": wish.end.longitude},
        }
        try:
            phone.active = (await phone.command("user.finder", frame))["is_active"]
        except Refused as refusal:
            if refusal.code != "CONFLICT":
                raise
            await phone.until(lambda: phone.open_ride() is not None, seconds=1.0)

    async def _accept(self, match_id: str) -> None:
        """Accept one proposal and wait for its end; the others stay open until then."""
        phone = self.phone
        try:
            await phone.command("match.accept", {"match_id": match_id})
        except Refused as refusal:
            # It ended while the answer was on its way.
            phone.note("refused", match_id, refusal.code)
            self._hopeless.add(match_id)
            return
        await phone.until(lambda: not phone.matches[match_id].is_open or phone.open_ride() is not None, seconds=60)
        self._hopeless.add(match_id)

    # -- riding and paying

    async def cancel(self, ride_id: str) -> None:
        """Change one's mind. Raises Refused."""
        status = await self.phone.command("ride.cancel", {"ride_id": ride_id, "reason": "changed my mind"})
        self.phone.note("ride.cancel", ride_id, status["status"])

    async def _ride_along(self, ride: RideView) -> None:
        phone, ride_id = self.phone, ride.ride_id
        await phone.until(lambda: phone.rides[ride_id].rank >= RIDE_RANK["ARRIVED"] or self.outcome.state == "failed")
        if self.outcome.state == "failed":
            raise Stuck(self.outcome.problem or f"the driver of ride {ride_id} gave up")
        if phone.rides[ride_id].status == "ARRIVED":
            await self._pay(ride_id)
            if not await phone.until(lambda: phone.is_over(ride_id), seconds=STUCK_SECONDS):
                raise Stuck(f"ride {ride_id} was paid but not completed")
        self.outcome.ended_at = self.city.clock.now()
        self.outcome.state = "paid" if phone.rides[ride_id].status == "COMPLETED" else "cancelled"

    async def _pay(self, ride_id: str) -> None:
        amount = self.phone.rides[ride_id].adjusted_cost
        if self.wish.declines_first:
            await self._try_to_pay(ride_id, amount, "test_decline")
            self.outcome.refused_payments += 1
        for _ in range(PAYMENT_TRIES):
            status = await self._try_to_pay(ride_id, amount, "ewallet")
            if status == "ACCEPTED":
                return
            # PENDING: the gateway is slow, the server goes on asking. REJECTED: the answer is of the try before,
            # which had none when this one was made.
            if status == "PENDING":
                await self.phone.until(lambda: self.phone.is_over(ride_id), seconds=PENDING_SECONDS)

    async def _try_to_pay(self, ride_id: str, amount: int | None, method: str) -> str:
        payment = {"ride_id": ride_id, "amount": amount, "method": method}
        answer = await self.phone.command("ride.pay", payment, timeout=20)
        self.phone.note("ride.pay", ride_id, answer["status"])
        return str(answer["status"])


class Driver:
    """A car that waits, drives to whoever it was matched with, and waits again where the ride ended."""

    def __init__(self, city: City, phone: Phone, name: str, plate: str, place: Location, rng: random.Random) -> None:
        self.city = city
        self.phone = phone
        self.name = name
        self.plate = plate
        self.place = place
        self.errand: Passenger | None = None
        self._rng = rng
        self._answered: set[str] = set()
        self._driven: set[str] = set()
        self._busy = False

    @property
    def is_parked(self) -> bool:
        return not self._busy and self.errand is None and self.phone.active and self.phone.open_ride() is None

    async def join(self) -> None:
        """Log in and register. Raises PhoneError."""
        await self.phone.login()
        await self.phone.register_driver(self.name, "car", self.plate)
        self.city.drivers[self.phone.user_id] = self
        self.city.phones[self.phone.user_id] = self.phone

    async def work(self) -> None:
        """Until the city closes and every proposal has ended. Raises Stuck, PhoneError, Refused."""
        async with self.phone:
            await self._beacon()
            while not (self.city.closing and not self.phone.open_matches()):
                if await self.phone.until(self._is_called, seconds=PARKED_PING_REAL):
                    await self._act()
                else:
                    await self.phone.ping(self.place, self.city.clock.now())

    def _is_called(self) -> bool:
        phone = self.phone
        return (
            phone.open_ride() is not None
            or bool(self._unanswered())
            or not phone.active
            or self.errand is not None
            or (self.city.closing and not phone.open_matches())
        )

    def _unanswered(self) -> list[str]:
        return [match.match_id for match in self.phone.open_matches() if match.match_id not in self._answered]

    async def _act(self) -> None:
        self._busy = True
        ride = self.phone.open_ride()
        if ride is not None:
            await self._serve(ride)
        elif unanswered := self._unanswered():
            await self._answer(unanswered[0])
        elif not self.phone.active:
            await self._beacon()
        elif self.errand is not None:
            await self._cruise(self.errand)
        self._busy = False

    async def _beacon(self) -> None:
        here = self.phone.here(self.place, self.city.clock.now())
        try:
            answer = await self.phone.command("user.beacon", {"is_active": True, "location": here})
        except Refused as refusal:
            if refusal.code != "CONFLICT":
                raise
            await self.phone.until(lambda: self.phone.open_ride() is not None, seconds=1.0)
        else:
            self.phone.active = answer["is_active"]

    async def _answer(self, match_id: str) -> None:
        """Accept or reject, a moment after the proposal was seen; strangers of the simulation are not served."""
        self._answered.add(match_id)
        await asyncio.sleep(self.city.clock.to_real(self._rng.uniform(1, 4)))
        known = self.phone.matches[match_id].passenger_id in self.city.passengers
        accepts = known and self._rng.random() < self.city.accept
        try:
            await self.phone.command("match.accept" if accepts else "match.reject", {"match_id": match_id})
        except Refused as refusal:
            # It ended while the driver was thinking.
            self.phone.note("refused", match_id, refusal.code)

    async def _cruise(self, passenger: Passenger) -> None:
        """Drive empty towards somebody who waits, until near, called elsewhere, or no longer needed."""
        way = leg(self.place, passenger.wish.start, ping_seconds=CRUISE_PING_SECONDS)
        pace = Pace(self.city.clock, way)
        for place in way.places():
            at = await pace.step()
            self.place = place
            await self.phone.ping(place, at)
            near = distance_km(place, passenger.wish.start) < NEAR_ENOUGH_KM
            if near or not passenger.is_waiting or self.phone.open_ride() is not None or self._unanswered():
                break
        self.errand = None

    # -- a ride

    async def _serve(self, ride: RideView) -> None:
        passenger = self.city.passengers[ride.passenger_id]
        outcome = passenger.outcome
        outcome.ride_id, outcome.match_id, outcome.driver_id = ride.ride_id, ride.match_id, ride.driver_id
        self.errand = None
        if await self._pick_up(ride, passenger) and await self._start(ride, passenger):
            await self._bring(ride, passenger)
        if not await self.phone.until(lambda: self.phone.is_over(ride.ride_id), seconds=STUCK_SECONDS):
            raise Stuck(f"ride {ride.ride_id} did not end, it is {self.phone.rides[ride.ride_id].status}")

    async def _pick_up(self, ride: RideView, passenger: Passenger) -> bool:
        """Drive to the passenger; False when one side cancelled."""
        wish = passenger.wish
        way = leg(self.place, wish.start, ping_seconds=2 * self.city.ping_seconds, noise_m=self.city.noise_m)
        start = self.place
        pace = Pace(self.city.clock, way)
        for driven, place in enumerate(way.places()):
            if wish.cancelled_by is not None and driven >= wish.cancel_share * way.steps:
                break
            at = await pace.step()
            self.place = place
            await self.phone.ping(place, at)
            if self.phone.is_over(ride.ride_id):
                return False
        passenger.outcome.pickup_km = distance_km(start, self.place)
        if wish.cancelled_by is None:
            return True
        await self._cancel(ride.ride_id, passenger)
        return False

    async def _cancel(self, ride_id: str, passenger: Passenger) -> None:
        if passenger.wish.cancelled_by == "passenger":
            await passenger.cancel(ride_id)
            return
        answer = await self.phone.command("ride.cancel", {"ride_id": ride_id, "reason": "flat tyre"})
        self.phone.note("ride.cancel", ride_id, answer["status"])

    async def _start(self, ride: RideView, passenger: Passenger) -> bool:
        """Say that the passenger is on board; both phones show first that they are together."""
        problem: Refused | None = None
        for _ in range(START_TRIES):
            now = self.city.clock.now()
            await passenger.phone.ping(passenger.wish.start, now)
            await self.phone.ping(self.place, now)
            await passenger.phone.settled()
            await self.phone.settled()
            try:
                answer = await self.phone.command("ride.start", {"ride_id": ride.ride_id})
            except Refused as refusal:
                if self.phone.is_over(ride.ride_id):
                    return False
                problem = refusal
                self.phone.note("refused", ride.ride_id, refusal.code, str(refusal))
                # Nothing tells a phone when the other one's place has become known: it asks again, as a driver would.
                await asyncio.sleep(0.1)
            else:
                self.phone.note("ride.start", ride.ride_id, answer["status"])
                passenger.outcome.started_at = self.city.clock.now()
                return True
        raise Stuck(f"ride {ride.ride_id} could not be started: {problem}")

    async def _bring(self, ride: RideView, passenger: Passenger) -> None:
        """Drive to the target, both phones reporting, and say that it is reached."""
        wish, outcome = passenger.wish, passenger.outcome
        way = leg(self.place, wish.end, ping_seconds=self.city.ping_seconds, noise_m=self.city.noise_m)
        pace = Pace(self.city.clock, way)
        for place in way.places():
            at = await pace.step()
            self.place = place
            await self.phone.ping(place, at)
            await passenger.phone.ping(place, at)
        outcome.true_km = way.kilometres
        outcome.factor = wish.factor
        arrival = {"ride_id": ride.ride_id} | ({} if wish.factor is None else {"adjustment_factor": wish.factor})
        await self.phone.command("ride.arrive", arrival, timeout=20)
        self.phone.note("ride.arrive", ride.ride_id, "ARRIVED")
