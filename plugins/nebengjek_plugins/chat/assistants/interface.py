"""What an assistant is: it reads a question, may use tools, and says its answer piece by piece."""

from collections.abc import AsyncGenerator, Collection
from typing import Literal, Protocol

from msgspec import Struct

from nebengjek_plugins.chat.contracts import WorkflowContext
from nebengjek_plugins.chat.tools import Tools

ROUNDS = 6
"""Times that a model may look something up before it has to answer."""
NOT_OURS_TO_REPEAT = frozenset({301, 302, 303, 307, 308, 400, 401, 403, 404, 413, 422})
"""Statuses with which a provider would refuse the same request again. It may send nobody elsewhere: keys go along."""
CALLS = 8
CALL_CHARACTERS = 10_000
"""Tools that a model may use at once, and how long what it says to them may be."""


class AssistantFailed(Exception):
    """It did not answer. ``code``: for whoever reads it; ``again``: another try may succeed."""

    def __init__(self, code: str, why: str, *, again: bool = True) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code
        self.again = again


def check_calls(arguments: Collection[str]) -> None:
    """``arguments`` of each call so far. Raises AssistantFailed: no answer needs that much."""
    if len(arguments) > CALLS or sum(map(len, arguments)) > CALL_CHARACTERS:
        raise AssistantFailed("TOO_MANY_CALLS", "the model asks for more than there is to know", again=False)


class Question(Struct, frozen=True, kw_only=True):
    """``context`` holds what was said before, and how to answer; all of it is of one session of one user."""

    message: str
    context: WorkflowContext


class Said(Struct, frozen=True):
    """The next words of the answer."""

    text: str


class Used(Struct, frozen=True, kw_only=True):
    """Who answered, at what cost, and why he stopped; the last one of an answer counts."""

    model: str
    tokens_used: int = 0
    finish_reason: Literal["stop", "length"] = "stop"


class Assistant(Protocol):
    def answer(self, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        """Begins to say before it knows all. ``tools`` are those of the user who asks. Raises AssistantFailed."""
        ...
