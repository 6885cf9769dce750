"""Answers by OpenAI's Chat Completions, or any server that speaks them (``openai_base_url``), by its official client.

Facts come through the tools as function calls; nothing of the database is in the prompt. Imported only where the
settings name ``openai``: the client is an extra, and costs most of a second of a start.
"""

from collections.abc import AsyncGenerator
from typing import Any, Literal

from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, omit
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from nebengjek_plugins.chat.assistants.interface import (
    NOT_OURS_TO_REPEAT,
    ROUNDS,
    AssistantFailed,
    Question,
    Said,
    Used,
    check_calls,
)
from nebengjek_plugins.chat.tools import Tools, schemas, use


class OpenAIAssistant:
    """``timeout``: seconds without a word of the server's."""

    def __init__(self, *, api_key: str, base_url: str | None, timeout: float) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._timeout = timeout

    async def answer(self, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        # The bus tries again, and what had been said by then is withdrawn; the client must not do so unseen.
        client = AsyncOpenAI(
            api_key=self._api_key,
            base_url=self._base_url,
            timeout=self._timeout,
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),
        )
        try:
            async with client:
                async for piece in self._rounds(client, question, tools):
                    yield piece
        except APIStatusError as error:
            again = error.status_code not in NOT_OURS_TO_REPEAT
            raise AssistantFailed(f"OPENAI_{error.status_code}", type(error).__name__, again=again) from error
        except APIConnectionError as error:
            raise AssistantFailed("OPENAI_AWAY", type(error).__name__) from error
        except APIError as error:
            raise AssistantFailed("OPENAI_FAILED", type(error).__name__) from error

    async def _rounds(self, client: AsyncOpenAI, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        context = question.context
        messages: list[ChatCompletionMessageParam] = []
        if context.system_prompt:
            messages.append({"role": "system", "content": context.system_prompt})
        messages += [_turn(turn.role, turn.content) for turn in context.conversation_history]
        messages.append({"role": "user", "content": question.message})
        spent = 0
        for number in range(ROUNDS):
            last = number == ROUNDS - 1
            stream = await client.chat.completions.create(
                model=context.model,
                messages=messages,
                temperature=context.temperature,
                max_completion_tokens=context.max_tokens,
                tools=omit if last else _TOOLS,
                stream=True,
                stream_options={"include_usage": True},
            )
            calls: dict[int, dict[str, str]] = {}
            reason: str | None = None
            text = ""
            async with stream:
                async for chunk in stream:
                    if chunk.usage is not None:
                        spent += chunk.usage.total_tokens
                    for choice in chunk.choices:
                        reason = choice.finish_reason or reason
                        if choice.delta.tool_calls:
                            _gather(calls, choice)
                            check_calls([call["arguments"] for call in calls.values()])
                        if choice.delta.content:
                            text += choice.delta.content
                            yield Said(choice.delta.content)
            if not calls or last:
                yield Used(model=context.model, tokens_used=spent, finish_reason=_finish(reason))
                return
            messages.append(_asked(text, calls))
            for call in calls.values():
                found = await use(tools, call["name"], call["arguments"].encode())
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": found})


def _finish(reason: str | None) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"


def _turn(role: str, content: str) -> ChatCompletionMessageParam:
    if role == "user":
        return {"role": "user", "content": content}
    return {"role": "assistant", "content": content}


def _gather(calls: dict[int, dict[str, str]], choice: Any) -> None:
    """The parts of a call come in several chunks, by the call's index."""
    for part in choice.delta.tool_calls:
        call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
        call["id"] += part.id or ""
        if part.function is not None:
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""


def _asked(text: str, calls: dict[int, dict[str, str]]) -> ChatCompletionMessageParam:
    return {
        "role": "assistant",
        "content": text or None,
        "tool_calls": [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in calls.values()
        ],
    }


_TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
    for name, description, schema in schemas()
]
