"""(b) From a passenger's finder to ``match.found`` on the driver's socket, with thousands of drivers online.

The peer is the same finder answered by its own ack: how much longer than the answer does the proposal take?
"""

import argparse
import asyncio
import random
import time
from collections.abc import Callable

import uvloop

from benchmarks.people import Person, crowd, percentile
from benchmarks.servers import backend
from benchmarks.wire import Child


def place(rng: random.Random) -> dict[str, float]:
    """Somewhere in Jakarta: a box of about 25 x 25 km."""
    return {"latitude": -6.30 + rng.random() * 0.22, "longitude": 106.70 + rng.random() * 0.22}


async def measure(server: Child, drivers: int, samples: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first driver's ``match.found``, and to the passenger's ack."""
    rng = random.Random(7)
    began = time.perf_counter()
    fleet = await crowd(server, 0, drivers, driver=True)
    for person in fleet:
        await person.say("user.beacon", {"is_active": True, "location": place(rng)})
    passengers = await crowd(server, 100_000, samples, driver=False)
    print(f"  {drivers} drivers online after {time.perf_counter() - began:.0f} s")
    found: list[float] = []
    acked: list[float] = []
    for passenger in passengers:
        heard = asyncio.get_running_loop().create_future()
        watch(fleet, passenger.user_id, heard)
        started = time.perf_counter()
        target = {"latitude": -6.2, "longitude": 106.8}
        ack = asyncio.ensure_future(
            passenger.say("user.finder", {"is_active": True, "location": place(rng), "target_location": target})
        )
        ack.add_done_callback(timed(acked, started))
        found.append((await asyncio.wait_for(heard, 30) - started) * 1000)
        await ack
        for person in fleet:
            person._wanted.clear()
        await passenger.say("user.finder", {"is_active": False})
    return found, acked


def timed(times: list[float], began: float) -> Callable[[object], None]:
    def took(_: object) -> None:
        times.append((time.perf_counter() - began) * 1000)

    return took


def watch(fleet: list[Person], passenger_id: str, heard: "asyncio.Future[float]") -> None:
    for person in fleet:

        def wanted(frame: dict[str, object]) -> bool:
            data = frame["data"]
            hit = frame["event"] == "match.found" and isinstance(data, dict) and data["passenger_id"] == passenger_id
            if hit and not heard.done():
                heard.set_result(time.perf_counter())
            return hit

        _ = person.expect(wanted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drivers", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--backend", choices=["embedded", "real"], default="embedded")
    options = parser.parse_args()
    with backend(options.backend) as server:
        found, acked = uvloop.run(measure(server, options.drivers, options.samples))
    p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
    ack50 = percentile(acked, 0.5)
    print(
        f"{options.backend}: finder to match.found with {options.drivers} drivers: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    )
    print(f"  the finder's own ack: p50 {ack50:.1f} ms; ratio of the medians {p50 / ack50:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
