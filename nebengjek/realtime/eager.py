"""A coroutine begun at once: most sends only put bytes into a buffer, and a turn of the loop each would cost more."""

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any


def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run ``work`` until it first has to wait; None when it came to its end, else the task that goes on with it.

    What ``asyncio.Task(eager_start=True)`` does from Python 3.12 on, except that until its first wait ``work`` runs
    inside the caller's task: it must not ask for the current task there, nor use ``asyncio.timeout``.
    """
    try:
        waiting = work.send(None)
    except StopIteration:
        return None
    return asyncio.get_running_loop().create_task(_go_on(work, waiting))


async def _go_on(work: Coroutine[Any, Any, None], waiting: Any) -> None:
    await _rest(work, waiting)


@coroutine
def _rest(work: Coroutine[Any, Any, None], waiting: Any) -> Generator[Any, None, None]:
    """Hand on what ``work`` waits for, and to it what comes of that, until its end."""
    thrown: BaseException | None = None
    while True:
        try:
            yield waiting
        except BaseException as error:
            thrown = error
        try:
            waiting = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration:
            return
        thrown = None
