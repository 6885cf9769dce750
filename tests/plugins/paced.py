"""An assistant in another process, which says the words that a test writes into a file, as they come."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from nebengjek_plugins.chat.assistants.interface import Question, Said, Used
from nebengjek_plugins.chat.tools import Tools

LOOK_SECONDS = 0.02
END = "END"


class Paced:
    """``folder/<question>.words``: a word a line; ``folder/<question>.pids``: who has answered, a line each time."""

    def __init__(self, *, folder: str) -> None:
        self._folder = Path(folder)

    async def answer(self, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        with (self._folder / f"{question.message}.pids").open("a") as pids:
            pids.write(f"{os.getpid()}\n")
        words = self._folder / f"{question.message}.words"
        said = 0
        while True:
            lines = words.read_text().splitlines(keepends=True) if words.exists() else []
            for line in lines[said:]:
                if not line.endswith("\n"):
                    break
                said += 1
                if line.strip() == END:
                    yield Used(model="paced", tokens_used=said)
                    return
                yield Said(line.replace("\n", " "))
            await asyncio.sleep(LOOK_SECONDS)


class Play:
    """The other end of it, for the test."""

    def __init__(self, folder: Path, question: str) -> None:
        self._words = folder / f"{question}.words"
        self._pids = folder / f"{question}.pids"

    def say(self, *words: str) -> None:
        with self._words.open("a") as file:
            file.writelines(f"{word}\n" for word in words)

    async def workers(self, count: int = 1) -> list[int]:
        """The processes that have answered it, when there are so many."""
        async with asyncio.timeout(60):
            while True:
                pids = self._pids.read_text().split() if self._pids.exists() else []
                if len(pids) >= count:
                    return [int(pid) for pid in pids]
                await asyncio.sleep(LOOK_SECONDS)
