"""An assistant that a test speaks through: word by word, when it wants."""

import asyncio
from collections.abc import AsyncGenerator

from nebengjek_plugins.chat.assistants.interface import AssistantFailed, Question, Said, Used
from nebengjek_plugins.chat.tools import Tools


class Script:
    """The answers to one message's text: a queue of words for each time that it is asked."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.users: list[str] = []
        self._words: list[asyncio.Queue[str | Exception | None]] = []
        self._begun = asyncio.Condition()

    async def begun(self, times: int = 1) -> None:
        """It was asked so often."""
        async with asyncio.timeout(60), self._begun:
            await self._begun.wait_for(lambda: len(self.asked) >= times)

    async def say(self, *words: str | Exception | None, attempt: int = 1) -> None:
        """Words of an attempt; None is the end, an exception a failure."""
        await self.begun(attempt)
        for word in words:
            self._words[attempt - 1].put_nowait(word)

    async def speak(self, question: Question, user_id: str) -> AsyncGenerator[Said | Used, None]:
        words: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        async with self._begun:
            self.asked.append(question)
            self.users.append(user_id)
            self._words.append(words)
            self._begun.notify_all()
        while (word := await words.get()) is not None:
            if isinstance(word, Exception):
                raise word
            yield Said(word)
        yield Used(model="scripted", tokens_used=7)


SCRIPTS: dict[str, Script] = {}


def script(text: str) -> Script:
    """For questions of this text, from now on."""
    made = SCRIPTS[text] = Script()
    return made


class Scripted:
    """``custom = "tests.plugins.scripted:Scripted"``"""

    def __init__(self, *, codes: str = "") -> None:
        self.codes = codes

    async def answer(self, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        found = SCRIPTS.get(question.message)
        if found is None:
            raise AssistantFailed("NO_SCRIPT", question.message, again=False)
        async for piece in found.speak(question, tools.user_id):
            yield piece


def settings(**more: object) -> dict[str, object]:
    """``[plugin.chat]`` with this assistant."""
    return {"ai_provider": "custom", "custom": "tests.plugins.scripted:Scripted", **more}
