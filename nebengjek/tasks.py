"""The end of tasks that do not end by themselves."""

import asyncio
from typing import Any


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them and wait until all have ended, in whatever way.

    More than once: a ``wait_for`` whose future is done in the same turn swallows a cancellation (Python 3.11), in a
    library's code as in ours, and the task would go on for ever.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=0.1)
    for task in tasks:
        # Looked at, or asyncio reports what one of them died of.
        if not task.cancelled():
            task.exception()
