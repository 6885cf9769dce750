"""The OpenAPI document: schemathesis tries it on the running application, and it names what was promised."""

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Err
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from nebengjek.settings import DEVELOPMENT_ADMIN_KEY
from tests.flows.conftest import Backend, Embedded
from tests.flows.world import Phone, World

T = TypeVar("T")
PATIENCE = 20.0


@contextmanager
def in_a_thread(backend: Backend) -> Iterator[tuple[World, asyncio.AbstractEventLoop]]:
    """A world that runs while the test, which is no coroutine, calls it from outside."""
    started: Future[tuple[World, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        done = asyncio.Event()
        async with backend.own_world() as world:
            started.set_result((world, asyncio.get_running_loop(), done))
            await done.wait()

    def main() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            if started.done():
                raise  # pytest makes an error of what a thread leaves behind
            started.set_exception(error)

    thread = threading.Thread(target=main)
    thread.start()
    world, loop, done = started.result(PATIENCE)
    try:
        yield world, loop
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the application does not end"


class Callers:
    """A driver and a passenger who are under way to each other, and an operator; they call a running application."""

    def __init__(self, world: World, loop: asyncio.AbstractEventLoop) -> None:
        self._world = world
        self._loop = loop
        self.answered: set[str] = set()
        self.driver, self.passenger, self.ids = self._wait(self._meet())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _meet(self) -> tuple[Phone, Phone, dict[str, str]]:
        driver, passenger = await self._world.driver(), await self._world.passenger()
        ride_id = await self._world.pickup(driver, passenger)
        match_id = (await driver.expect("ride.pickup", ride_id=ride_id))["data"]["match_id"]
        return driver, passenger, {"ride_id": ride_id, "match_id": match_id, "user_id": passenger.user_id}

    def attempt(self, operation: Any, mode: GenerationMode, examples: int) -> None:
        """Call ``operation`` so often, in turn as the one and the other, with ids that exist and with any."""
        # Whoever deletes his account is nobody afterwards.
        leaves = operation.label == "DELETE /users/me"
        people = [self._wait(Phone(self._world).login())] if leaves else [self.driver, self.passenger]
        turns = itertools.count()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def call(case: Any) -> None:
            turn = next(turns)
            if turn // len(people) % 2 == 0:
                case.path_parameters.update({name: self.ids[name] for name in case.path_parameters if name in self.ids})
            token = people[turn % len(people)].token
            response = case.call(headers={"Authorization": f"Bearer {token}", "X-API-Key": DEVELOPMENT_ADMIN_KEY})
            self.answered.add(f"{operation.label} {response.status_code}")
            case.validate_response(response, excluded_checks=_beyond_the_schema(operation))

        call()


def _beyond_the_schema(operation: Any) -> list[Any]:
    """A phone number is more than a string, a ride has a state: what the document allows may still be refused.

    And a query parameter that it does not name, or names once, is ignored, not refused.
    """
    return [positive_data_acceptance, *([] if operation.body else [negative_data_rejection])]


# The application shares the process with hypothesis, in a thread of its own, and makes trace ids with ``random``
# while an example is drawn: hypothesis takes that for a strategy that does.
@pytest.mark.filterwarnings("ignore:Do not use the .random. module:hypothesis.errors.HypothesisDeprecationWarning")
def test_whatever_is_sent_it_is_answered_as_the_document_says(backend: Backend) -> None:
    with in_a_thread(backend) as (world, loop):
        callers = Callers(world, loop)
        document = schemathesis.openapi.from_url(f"{world.url}/schema/openapi.json")
        for found in document.get_all_operations():
            if isinstance(found, Err):
                raise found.err()
            operation = found.ok()
            # What takes nothing is asked for twice, and cannot be asked for wrongly.
            takes = bool(operation.body or operation.query or operation.path_parameters)
            modes = {GenerationMode.POSITIVE: 4, GenerationMode.NEGATIVE: 3} if takes else {GenerationMode.POSITIVE: 2}
            for mode, examples in modes.items():
                callers.attempt(operation, mode, examples)
        # They were not only refused.
        assert callers.answered >= {
            "DELETE /users/me 204",
            "GET /admin/consumers 200",
            "GET /matches/{match_id} 200",
            "GET /rides/{ride_id} 200",
            "GET /rides/{ride_id} 404",
            "GET /users/{user_id} 200",
            "GET /users/{user_id} 403",
            "PATCH /users/me 200",
            "POST /location 202",
            "POST /rides/{ride_id}/arrive 200",
            "POST /rides/{ride_id}/start 200",
            "PUT /beacon 409",
        }


async def test_the_document_names_every_route_of_the_contract(tmp_path: Path, sqlite_template: Path) -> None:
    async with Embedded(tmp_path, sqlite_template).own_world() as world:
        document = (await world.http.get("/schema")).json()
        assert document == (await world.http.get("/schema/openapi.json")).json()
        operations = {
            f"{method.upper()} {path}": operation
            for path, item in document["paths"].items()
            for method, operation in item.items()
        }
        assert operations.keys() >= CONTRACT
        for name, operation in operations.items():
            path = name.split()[1]
            public, admin = path.startswith(("/auth", "/health")), path.startswith("/admin")
            assert operation.get("security") == ([] if public else [{"operator": []}] if admin else None), name
            assert not {"default", "400", "500"} & operation["responses"].keys(), name
            assert ("401" in operation["responses"]) is not public, name
            for status, response in operation["responses"].items():
                kinds = set(response.get("content", {}))
                own = not status.startswith(("4", "5"))
                own = own or (status == "503" and path in ("/health", "/health/ready", "/health/detailed"))
                assert kinds <= ({"application/json"} if own else {"application/problem+json"}), (name, status)
        assert document["security"] == [{"bearer": []}]
        needed = {name for name, one in operations.items() if one.get("requestBody", {}).get("required")}
        assert "POST /rides/{ride_id}/pay" in needed
        assert not {"POST /rides/{ride_id}/cancel", "POST /rides/{ride_id}/arrive"} & needed


CONTRACT = {
    "POST /auth/otp/generate",
    "POST /auth/otp/verify",
    "POST /auth/refresh",
    "POST /auth/logout",
    "GET /users/me",
    "PATCH /users/me",
    "DELETE /users/me",
    "GET /users/{user_id}",
    "POST /drivers/register",
    "GET /rides",
    "GET /rides/{ride_id}",
    "GET /matches",
    "GET /matches/{match_id}",
    "GET /fares/estimate",
    "PUT /beacon",
    "PUT /finder",
    "POST /location",
    "POST /matches/{match_id}/accept",
    "POST /matches/{match_id}/reject",
    "POST /rides/{ride_id}/start",
    "POST /rides/{ride_id}/arrive",
    "POST /rides/{ride_id}/pay",
    "POST /rides/{ride_id}/cancel",
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /health/detailed",
}
