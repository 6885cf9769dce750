"""(c) Whole rides per second, CPU seconds per ride.

Each ride is: beacon, finder, two acceptances, start, ten points of each phone, arrival, payment. Pairs are far apart,
so each finds its own. The ceiling for rides: bare commits per second of SQLite by the same engine, in the same run.
"""

import argparse
import asyncio
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop
from sqlalchemy import text

from benchmarks.people import Person, crowd
from benchmarks.servers import backend
from benchmarks.wire import Child
from nebengjek.database import Database

POINTS = 10


async def ride(driver: Person, passenger: Person, row: int) -> None:
    """One ride of a kilometre, its points in the past of the phones' clocks."""
    latitude, longitude = -60.0 + row * 0.2, 10.0
    began = datetime.now(UTC) - timedelta(minutes=10)

    def point(number: int) -> dict[str, object]:
        stamp = (began + timedelta(seconds=10 * number)).isoformat()
        return {"location": {"latitude": latitude + number * 0.0009, "longitude": longitude, "timestamp": stamp}}

    here = {"latitude": latitude, "longitude": longitude}
    for person in (driver, passenger):
        person.tell("location.update", point(0))
    found = driver.expect(lambda f: f["event"] == "match.found" and f["data"]["passenger_id"] == passenger.user_id)
    pickup = driver.expect(lambda f: f["event"] == "ride.pickup")
    paid = driver.expect(lambda f: f["event"] == "ride.completed")
    await driver.say("user.beacon", {"is_active": True, "location": here})
    await passenger.say("user.finder", {"is_active": True, "location": here, "target_location": here})
    match_id = (await found)["data"]["match_id"]
    await driver.say("match.accept", {"match_id": match_id})
    await passenger.say("match.accept", {"match_id": match_id})
    ride_id = (await pickup)["data"]["ride_id"]
    await driver.say("ride.start", {"ride_id": ride_id})
    for number in range(1, POINTS + 1):
        driver.tell("location.update", point(number))
        passenger.tell("location.update", point(number))
    bill = await driver.say("ride.arrive", {"ride_id": ride_id})
    if bill["adjusted_cost"]:
        await passenger.say("ride.pay", {"ride_id": ride_id, "amount": bill["adjusted_cost"]})
    await paid
    await driver.say("user.beacon", {"is_active": False})


async def rides(server: Child, count: int, at_once: int) -> tuple[float, float]:
    """(rides per second, CPU seconds per ride)."""
    drivers = await crowd(server, 0, count, driver=True)
    passengers = await crowd(server, 100_000, count, driver=False)
    limit = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with limit:
            await ride(drivers[number], passengers[number], number)

    began, cpu = time.perf_counter(), server.cpu()
    await asyncio.gather(*(one(number) for number in range(count)))
    return count / (time.perf_counter() - began), (server.cpu() - cpu) / count


async def commits() -> float:
    """Bare transactions per second: one insert, one commit, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'commits.sqlite3'}")
        async with database.begin() as tx:
            await tx.execute(text("CREATE TABLE one (n INTEGER)"))
        began, count = time.perf_counter(), 1000
        for number in range(count):
            async with database.begin() as tx:
                await tx.execute(text("INSERT INTO one VALUES (:n)"), {"n": number})
        await database.close()
        return count / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rides", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--backend", choices=["embedded", "real"], default="embedded")
    options = parser.parse_args()
    with backend(options.backend) as server:
        per_second, cpu = uvloop.run(rides(server, options.rides, options.at_once))
    ceiling = uvloop.run(commits())
    print(f"{options.backend}: {per_second:.1f} rides per second, {cpu * 1000:.0f} ms CPU per ride")
    print(f"  bare commits: {ceiling:.0f} per second; a ride takes the time of {ceiling / per_second:.0f} of them")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
