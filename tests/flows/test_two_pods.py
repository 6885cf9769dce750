"""Two real processes that both serve phones, on real servers: a ride across them, and phones that hop between them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest

from benchmarks.wire import free_port
from nebengjek.clock import ManualClock
from tests.flows.world import BUNDARAN_HI, MONAS, Phone, World, moved
from tests.servers import nats_server, postgres_server, valkey_server

pytestmark = pytest.mark.real


class Pod:
    """A process; as much of a world as a phone needs."""

    def __init__(self, pod_id: str, env: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.clock = ManualClock()
        self.http = httpx.AsyncClient(base_url=self.url, timeout=10, verify=False)
        command = [sys.executable, "-m", "nebengjek", "run", "--port", str(self.port)]
        environment = {**os.environ, **env, "NATS_CLIENT_ID": pod_id}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if str(self.port).encode() in line:
                return
        raise AssertionError(f"the server ended with {self.process.wait()}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def pods(*names: str) -> Iterator[list[Pod]]:
    with nats_server() as nats, valkey_server() as redis, postgres_server() as postgres, ExitStack() as stack:
        env = {
            "NATS_URL": nats.url,
            "REDIS_URL": redis,
            "DATABASE_URL": postgres.new_database(),
            "NEBENGJEK__PROFILE": "test",
            "NEBENGJEK__AUTH__OTP_DEBUG": "true",
            "NEBENGJEK__LOCATION__MAX_SPEED_KMH": "2000",
        }
        made = []
        for name in names:
            pod = Pod(name, env)
            stack.callback(pod.kill)
            pod.wait_ready()
            made.append(pod)
        yield made


class Hopper(Phone):
    """A phone that comes back on another pod with what it has seen last."""

    epoch = ""

    async def come(self, pod: Pod) -> str:
        """Leave, and connect to ``pod``; what ``session.ready`` says of the replay."""
        await self.disconnect()
        self.world: World = pod  # type: ignore[assignment]
        query = f"?epoch={self.epoch}&last_seq={self.seqs[-1] if self.seqs else 0}" if self.epoch else ""
        ready = await self.connect(query)
        self.epoch = ready["epoch"]
        return str(ready["replay"])

    @property
    def seqs(self) -> list[int]:
        return [frame["seq"] for frame in self.frames if "seq" in frame]

    def shown(self, event: str) -> list[dict[str, Any]]:
        return [frame["data"] for frame in self.frames if frame["event"] == event]


async def people(one: Pod, two: Pod) -> tuple[Hopper, Hopper]:
    driver, passenger = Hopper(one), Hopper(two)  # type: ignore[arg-type]
    await (await driver.login()).become_driver()
    await passenger.login()
    assert await driver.come(one) == await passenger.come(two) == "none"
    return driver, passenger


async def test_a_whole_ride_with_driver_and_passenger_on_different_pods() -> None:
    with pods("one", "two") as (one, two):
        driver, passenger = await people(one, two)
        await driver.say("user.beacon", {"is_active": True, "location": MONAS})
        sought = {"is_active": True, "location": moved(MONAS, 20), "target_location": BUNDARAN_HI}
        await passenger.say("user.finder", sought)
        match_id = (await driver.expect("match.found"))["data"]["match_id"]
        for phone in (driver, passenger):
            await phone.say("match.accept", {"match_id": match_id})
        ride_id = (await driver.expect("ride.pickup", match_id=match_id))["data"]["ride_id"]
        await passenger.expect("ride.pickup", ride_id=ride_id)
        await driver.say("location.update", {"location": MONAS})
        await passenger.say("location.update", {"location": MONAS})
        await driver.say("ride.start", {"ride_id": ride_id})
        await passenger.expect("ride.started", ride_id=ride_id)
        await drive(driver, 1100)
        await passenger.expect("ride.progress", ride_id=ride_id, sequence=1)
        # Conflated frames come across too: each point was confirmed to the one and shown to the other.
        await passenger.expect("ride.tracking", ride_id=ride_id)
        await driver.expect("location.stored")
        bill = await driver.say("ride.arrive", {"ride_id": ride_id})
        assert bill["total_cost"] == pytest.approx(3300, rel=0.05)
        await passenger.expect("ride.arrived", ride_id=ride_id)
        paid = await passenger.say("ride.pay", {"ride_id": ride_id, "amount": bill["adjusted_cost"]})
        assert paid["status"] == "ACCEPTED"
        for phone in (driver, passenger):
            await phone.expect("ride.completed", ride_id=ride_id)
            assert phone.seqs == list(range(1, len(phone.seqs) + 1))
        for pod in (one, two):
            assert (await pod.http.get("/health/ready")).status_code == 200
            await pod.http.aclose()
        for phone in (driver, passenger):
            await phone.disconnect()


async def test_phones_that_hop_pods_at_every_step_miss_nothing() -> None:
    with pods("one", "two") as (one, two):
        driver, passenger = await people(one, two)
        here = {driver: one, passenger: two}

        async def hop() -> None:
            """Both change places while frames are on their way."""
            for phone, pod in list(here.items()):
                here[phone] = two if pod is one else one
                assert await phone.come(here[phone]) == "complete"

        await driver.say("user.beacon", {"is_active": True, "location": MONAS})
        sought = {"is_active": True, "location": moved(MONAS, 20), "target_location": BUNDARAN_HI}
        await passenger.say("user.finder", sought)
        await hop()
        match_id = (await driver.expect("match.found"))["data"]["match_id"]
        await driver.say("match.accept", {"match_id": match_id})
        await hop()
        await passenger.say("match.accept", {"match_id": match_id})
        await hop()
        ride_id = (await driver.expect("ride.pickup", match_id=match_id))["data"]["ride_id"]
        await driver.say("location.update", {"location": MONAS})
        await hop()
        await passenger.say("location.update", {"location": MONAS})
        frame_id = "the start, from two pods"
        first = await driver.say("ride.start", {"ride_id": ride_id}, frame_id)
        await hop()
        assert await driver.say("ride.start", {"ride_id": ride_id}, frame_id) == first
        for part in range(3):
            await drive(driver, 400, begin=400 * part)
            await hop()
        bill = await driver.say("ride.arrive", {"ride_id": ride_id})
        await hop()
        await passenger.say("ride.pay", {"ride_id": ride_id, "amount": bill["adjusted_cost"]})
        await hop()
        for phone in (driver, passenger):
            await phone.expect("ride.completed", ride_id=ride_id)
            assert phone.seqs == list(range(1, len(phone.seqs) + 1))
            for event in ("ride.pickup", "ride.started", "ride.arrived", "ride.completed"):
                assert phone.count(event) == 1
            progress = [one["sequence"] for one in phone.shown("ride.progress")]
            assert all(before < after for before, after in pairwise(progress))
            await phone.disconnect()
        for pod in (one, two):
            await pod.http.aclose()


async def drive(driver: Phone, metres: int, *, begin: int = 0) -> None:
    """North from Monas, 40 m each tenth of a second: as fast as the settings let a phone be."""
    for done in range(begin + 40, begin + metres + 1, 40):
        await asyncio.sleep(0.1)
        await driver.say("location.update", {"location": moved(MONAS, done)})
