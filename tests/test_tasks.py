"""Tasks are ended for good: a bus that waits for a loop of its own must not wait for ever."""

import asyncio
from pathlib import Path

import pytest

from nebengjek.app import App
from nebengjek.module import Sweep
from nebengjek.tasks import cancelled
from tests.flows.world import settings_for

PATIENCE = 30.0


async def deaf(times: int) -> None:
    """Takes so many cancellations for something else, as ``wait_for`` may with an answer of the same turn."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not times:
                raise
            times -= 1


async def failing() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("at its end")


async def test_tasks_end_however_often_they_must_be_told() -> None:
    tasks = [asyncio.create_task(task) for task in (deaf(0), deaf(1), deaf(3), failing())]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await cancelled(*tasks)
        await cancelled(*tasks)
    assert [task.cancelled() for task in tasks] == [True, True, True, False]


async def test_an_answer_that_comes_in_the_same_turn_is_no_escape() -> None:
    asked: list[asyncio.Future[None]] = []

    async def ask_for_ever() -> None:
        while True:
            asked.append(asyncio.get_running_loop().create_future())
            await asyncio.wait_for(asked[-1], PATIENCE)

    task = asyncio.create_task(ask_for_ever())
    await asyncio.sleep(0)
    asked[-1].set_result(None)
    async with asyncio.timeout(PATIENCE):
        await cancelled(task)
    assert task.cancelled()


async def test_an_application_ends_although_a_sweep_does_not_hear_it_the_first_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = asyncio.Event()

    async def sweep() -> None:
        begun.set()
        await deaf(1)

    monkeypatch.setattr(App, "sweeps", lambda _: [Sweep(seconds=0, run=sweep)])
    app = App(settings_for(f"sqlite:///{tmp_path / 'x.sqlite3'}"))
    async with asyncio.timeout(PATIENCE):
        await app.start()
        await begun.wait()
        await app.stop()
