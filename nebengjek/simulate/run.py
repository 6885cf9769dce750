"""A whole run: the people are made, the city opens, everybody rides, the books are compared, the table is shown."""

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx
import msgspec
from msgspec import Struct
from rich.console import Console

from nebengjek.contracts.geo import Location, distance_km
from nebengjek.contracts.rides import Ride, RideDetails
from nebengjek.errors import Misconfigured, NebengJekError
from nebengjek.simulate.checks import Evidence, run_checks
from nebengjek.simulate.movement import GpsNoise, SimulatedClock
from nebengjek.simulate.options import DemoOptions, SimulationOptions, effective_ping_seconds
from nebengjek.simulate.people import (
    DECLINED_SHARE,
    DISCOUNT_SHARE,
    City,
    Driver,
    Outcome,
    Passenger,
    Stuck,
    Wish,
)
from nebengjek.simulate.phone import Phone, PhoneError, Refused, Tally
from nebengjek.simulate.places import LANDMARKS, Place
from nebengjek.simulate.report import Display, figures_of, rupiah, show, waiting_and_riding, write_json
from nebengjek.simulate.server import Server, ServerError, Streams, look_at_streams, server_of
from nebengjek.simulate.trips import Trip, departures, read_trips

LOGINS_AT_ONCE = 8
BUSY_SHARE = 0.8
"""Trips under way per driver: some must be free, or the next passenger waits for a car from far away."""
STALLED_SECONDS = 150.0
CLOSING_SECONDS = 60.0
DEMO_TRIP_KM = (1.0, 6.0)
DEMO_GAP_SECONDS = 20.0
NAMES = ("Adi", "Ayu", "Bima", "Citra", "Dewi", "Eko", "Fitri", "Gilang", "Hana", "Indra", "Joko", "Kartika", "Lestari")
SURNAMES = ("Hidayat", "Kusuma", "Nugroho", "Pratama", "Rahayu", "Santoso", "Siregar", "Utami", "Wibowo", "Wijaya")


Item = TypeVar("Item")


class Stalled(NebengJekError):
    """Nothing was heard for so long that nothing will come any more."""


class Plan(Struct, frozen=True, kw_only=True):
    """What a run is made of, whatever it was made from."""

    title: str
    wishes: list[Wish]
    stands: list[Location]
    """Where each driver starts."""
    speed: float
    ping_seconds: float
    noise_m: float
    accept: float
    seed: int
    labels: dict[str, str] = {}
    """What a trip is called, by its id."""


class Run(Struct, frozen=True, kw_only=True):
    """What came of a plan."""

    evidence: Evidence
    streams: Streams
    tally: Tally
    seconds: float


async def demo(options: DemoOptions | None = None, *, console: Console | None = None) -> int:
    """Rides between landmarks of Jakarta; 0 when every one ended paid and the sums agree."""
    chosen = options or DemoOptions()
    return await _play(chosen, lambda: _demo_plan(chosen), chosen.url, console or Console())


async def simulate(options: SimulationOptions, *, console: Console | None = None) -> int:
    """Real trips from a file; 0 when every check passes, 1 when one does not, 2 when it could not begin."""
    out = console or Console()
    return await _play(options, lambda: _trips_plan(options, out), options.url, out)


async def _play(
    options: DemoOptions | SimulationOptions, make: Callable[[], Plan], url: str | None, console: Console
) -> int:
    try:
        options.check()
        plan = make()
        async with server_of(url) as server:
            _say_pace(options, plan, console)
            run = await _ride(plan, server, console)
    except (Misconfigured, ServerError, PhoneError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    results = run_checks(run.evidence)
    figures = figures_of(run.evidence, run.tally, seconds=run.seconds, speed=plan.speed)
    show(console, plan.title, figures, run.streams, results)
    if options.json is not None:
        write_json(options.json, options, figures, run.streams, results, run.evidence)
    return 0 if all(result.passed for result in results) else 1


def _say_pace(options: DemoOptions | SimulationOptions, plan: Plan, console: Console) -> None:
    if plan.ping_seconds != options.ping_seconds:
        console.print(
            f"at {plan.speed:g} x a phone may report each {plan.ping_seconds:.2f} simulated seconds, "
            f"not {options.ping_seconds:g}: the server takes 20 frames a second from a phone",
            highlight=False,
        )


# -- plans


def _demo_plan(options: DemoOptions) -> Plan:
    rng = random.Random(options.seed)
    wishes, labels = [], {}
    for number in range(options.passengers):
        start, end = _two_places(rng)
        trip_id = f"demo-{number + 1}"
        wishes.append(_wish(trip_id, start.location, end.location, number * DEMO_GAP_SECONDS, 0.0, options.seed))
        labels[trip_id] = f"{start.name} → {end.name}"
    return Plan(
        title=f"{options.passengers} passengers and {options.drivers} drivers in Jakarta",
        wishes=wishes,
        stands=[rng.choice(LANDMARKS).location for _ in range(options.drivers)],
        speed=options.speed,
        ping_seconds=effective_ping_seconds(options.speed, options.ping_seconds),
        noise_m=options.noise_m,
        accept=1.0,
        seed=options.seed,
        labels=labels,
    )


def _two_places(rng: random.Random) -> tuple[Place, Place]:
    low, high = DEMO_TRIP_KM
    while True:
        start, end = rng.sample(LANDMARKS, 2)
        if low <= distance_km(start.location, end.location) <= high:
            return start, end


def _trips_plan(options: SimulationOptions, console: Console) -> Plan:
    file = read_trips(options.trips)
    trips = file.first(options.limit)
    left_out = ", ".join(f"{count:,} {why}" for why, count in sorted(file.skipped.items())) or "none"
    console.print(
        f"{options.trips}: {len(trips):,} of {file.rows:,} rows ride; not usable: {left_out}",
        markup=False,
        highlight=False,
    )
    rng = random.Random(options.seed)
    return Plan(
        title=f"{len(trips):,} trips of {options.trips.name}, {options.drivers:,} drivers",
        wishes=[_trip_wish(trip, at, options) for trip, at in zip(trips, departures(trips), strict=True)],
        stands=[rng.choice(trips).start for _ in range(options.drivers)],
        speed=options.speed,
        ping_seconds=effective_ping_seconds(options.speed, options.ping_seconds),
        noise_m=options.noise_m,
        accept=options.accept,
        seed=options.seed,
    )


def _trip_wish(trip: Trip, departs: float, options: SimulationOptions) -> Wish:
    return _wish(trip.trip_id, trip.start, trip.end, departs, options.cancel, options.seed)


def _wish(trip_id: str, start: Location, end: Location, departs: float, cancel: float, seed: int) -> Wish:
    """What fate decides hangs on the seed and the trip alone, not on who came first."""
    fate = random.Random(f"{seed}:{trip_id}")
    cancelled_by = fate.choice(("driver", "passenger")) if fate.random() < cancel else None
    return Wish(
        trip_id=trip_id,
        start=start,
        end=end,
        departs=departs,
        cancelled_by=cancelled_by,
        cancel_share=fate.random(),
        declines_first=fate.random() < DECLINED_SHARE,
        factor=fate.choice((0.95, 0.9, 0.8)) if fate.random() < DISCOUNT_SHARE else None,
    )


# -- the ride


class Identities:
    """Phone numbers and plates that nobody had before, so that a server can serve many runs."""

    def __init__(self) -> None:
        self._number = secrets.randbelow(10**8)
        self._plate = secrets.randbelow(9999 * 26**3)

    def msisdn(self) -> str:
        self._number = (self._number + 1) % 10**8
        return f"+62812{self._number:08d}"

    def plate(self) -> str:
        """``B 1234 XYZ``"""
        self._plate = (self._plate + 1) % (9999 * 26**3)
        letters, number = divmod(self._plate, 9999)
        a, rest = divmod(letters, 26 * 26)
        return f"B {number + 1} {chr(65 + a)}{chr(65 + rest // 26)}{chr(65 + rest % 26)}"


async def _ride(plan: Plan, server: Server, console: Console) -> Run:
    """Everything between the first login and the last answer."""
    tally = Tally()
    limits = httpx.Limits(max_connections=16)
    async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as http:
        before = await look_at_streams(http)
        city = City(
            clock=SimulatedClock(plan.speed),
            ping_seconds=plan.ping_seconds,
            noise_m=plan.noise_m,
            accept=plan.accept,
            tally=tally,
            outcomes={wish.trip_id: Outcome(trip_id=wish.trip_id) for wish in plan.wishes},
            passengers={},
            drivers={},
        )
        started = time.monotonic()
        try:
            await _open(plan, city, http, server, console)
        except* Stalled as group:
            console.print(str(_first(group)), style="red", highlight=False)
        except* (ServerError, PhoneError) as group:
            raise ServerError(f"{_first(group)}\n{server.tail()}".rstrip()) from group
        seconds = time.monotonic() - started
        try:
            rides, lists = await _books(city)
        except* PhoneError as group:
            raise ServerError(f"{_first(group)}\n{server.tail()}".rstrip()) from group
        streams = _since(before, await look_at_streams(http))
    evidence = Evidence(
        outcomes=list(city.outcomes.values()),
        rides=rides,
        lists=lists,
        histories={user_id: phone.history for user_id, phone in city.phones.items()},
        noise_m=plan.noise_m,
        dead_letters=None if streams.refused else streams.dead_letters,
        points_refused=tally.points_refused,
        gaps=tally.gaps,
    )
    return Run(evidence=evidence, streams=streams, tally=tally, seconds=seconds)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group of groups."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _since(before: Streams, after: Streams) -> Streams:
    """What this run added."""
    return Streams(
        messages={name: count - before.messages.get(name, 0) for name, count in after.messages.items()},
        dead_letters=max(0, after.dead_letters - before.dead_letters),
        refused=after.refused,
    )


async def _open(plan: Plan, city: City, http: httpx.AsyncClient, server: Server, console: Console) -> None:
    """Raises groups of Stalled and ServerError."""
    identities = Identities()

    def phone(name: str) -> Phone:
        return Phone(
            http, identities.msisdn(), GpsNoise(plan.noise_m, random.Random(f"{plan.seed}:{name}")), city.tally
        )

    drivers = [
        Driver(
            city,
            phone(f"driver {number}"),
            f"{NAMES[number % len(NAMES)]} {SURNAMES[number // len(NAMES) % len(SURNAMES)]}",
            identities.plate(),
            stand,
            random.Random(f"{plan.seed}:driver {number}"),
        )
        for number, stand in enumerate(plan.stands)
    ]
    passengers = [Passenger(city, phone(wish.trip_id), wish) for wish in plan.wishes]
    display = Display(console, len(plan.wishes))
    with display.running():
        display.update(0, f"{len(drivers)} drivers log in")
        await _each(drivers, LOGINS_AT_ONCE, lambda driver: driver.join())
        async with asyncio.TaskGroup() as watched:
            watch = watched.create_task(_watch(city, server, display))
            await _travel(plan, city, drivers, passengers, display)
            watch.cancel()


async def _travel(
    plan: Plan, city: City, drivers: Sequence[Driver], passengers: Sequence[Passenger], display: Display
) -> None:
    async with asyncio.TaskGroup() as working:
        for driver in drivers:
            working.create_task(_safely(city, driver.work(), driver.phone))
        opened = city.clock.now()
        places = asyncio.Semaphore(max(1, int(len(drivers) * BUSY_SHARE)))
        async with asyncio.TaskGroup() as travelling:
            for passenger in passengers:
                wait = city.clock.to_real(opened + passenger.wish.departs - city.clock.now())
                await asyncio.sleep(max(0.0, wait))
                await places.acquire()
                travelling.create_task(_one_trip(plan, passenger, places, display))
        city.closing = True
        for driver in drivers:
            driver.phone.wake()


async def _one_trip(plan: Plan, passenger: Passenger, places: asyncio.Semaphore, display: Display) -> None:
    try:
        await _safely(passenger.city, passenger.travel(), passenger.phone, passenger.outcome)
    finally:
        places.release()
    label = plan.labels.get(passenger.wish.trip_id)
    ride = passenger.phone.rides.get(passenger.outcome.ride_id)
    if label and ride is not None and ride.adjusted_cost is not None:
        display.tell(f"  {label}: {passenger.outcome.true_km:.1f} km, {rupiah(ride.adjusted_cost)}")


async def _safely(city: City, life: Awaitable[None], phone: Phone, outcome: Outcome | None = None) -> None:
    """Somebody's trouble ends his own trip, not the run: it becomes a failed trip, which a check shows."""
    try:
        await life
    except (Stuck, Refused, PhoneError) as error:
        ride = phone.open_ride()
        broken = (
            [outcome] if outcome else [one for one in city.outcomes.values() if ride and one.ride_id == ride.ride_id]
        )
        for one in broken:
            one.state, one.problem = "failed", str(error)
            if one.passenger_id in city.passengers:
                city.passengers[one.passenger_id].phone.wake()


async def _watch(city: City, server: Server, display: Display) -> None:
    """Show how it goes; raise when the server has died, or nothing was heard for long."""
    news, since = -1, time.monotonic()
    while True:
        outcomes = list(city.outcomes.values())
        done = sum(one.state in ("paid", "cancelled", "failed") for one in outcomes)
        display.update(done, waiting_and_riding(outcomes))
        if server.has_died:
            raise ServerError("the server has died")
        if city.tally.news != news:
            news, since = city.tally.news, time.monotonic()
        if time.monotonic() - since > STALLED_SECONDS:
            raise Stalled(f"nothing was heard for {STALLED_SECONDS:.0f} s: {waiting_and_riding(outcomes)}")
        # The period of the display: four pictures a second are enough for people.
        await asyncio.sleep(0.25)


# -- the books


async def _books(city: City) -> tuple[dict[str, RideDetails], dict[str, list[Ride]]]:
    """Each ride and everybody's list, as the server has them."""
    rides: dict[str, RideDetails] = {}
    lists: dict[str, list[Ride]] = {}

    async def ride(phone: Phone) -> None:
        for ride_id in phone.rides:
            if ride_id not in rides:
                rides[ride_id] = msgspec.convert(await phone.ask("GET", f"/rides/{ride_id}"), RideDetails)

    async def listed(phone: Phone) -> None:
        lists[phone.user_id] = await _list_of(phone)

    phones = list(city.phones.values())
    await _each([passenger.phone for passenger in city.passengers.values()], LOGINS_AT_ONCE, ride)
    await _each(phones, LOGINS_AT_ONCE, ride)
    await _each(phones, LOGINS_AT_ONCE, listed)
    return rides, lists


async def _list_of(phone: Phone) -> list[Ride]:
    items: list[Ride] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await phone.ask("GET", f"/rides?limit=100{f'&cursor={cursor}' if cursor else ''}")
        items += msgspec.convert(page["items"], list[Ride])
        cursor = page["next_cursor"]
    return items


async def _each(items: Sequence[Item], at_once: int, work: Callable[[Item], Awaitable[None]]) -> None:
    """``work`` for every item, ``at_once`` of them in parallel."""
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(at_once, len(items))):
            workers.create_task(worker())
