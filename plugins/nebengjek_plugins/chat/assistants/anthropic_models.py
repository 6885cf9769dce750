"""Answers by Anthropic's Messages, or any server that speaks them (``anthropic_base_url``), by its official client.

Facts come through the tools; nothing of the database is in the prompt. No temperature is sent: the client has no such
parameter since its version 1.0, and newer models answer 400 to it. Imported only where the settings name ``anthropic``:
the client is an extra.
"""

from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec
from anthropic import APIConnectionError, APIError, APIStatusError, AsyncAnthropic, DefaultAsyncHttpxClient, omit
from anthropic.types import MessageParam, ToolParam

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


class AnthropicAssistant:
    """``timeout``: seconds without a word of the server's."""

    def __init__(self, *, api_key: str, base_url: str | None, timeout: float) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._timeout = timeout

    async def answer(self, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        # The bus tries again, and what had been said by then is withdrawn; the client must not do so unseen.
        client = AsyncAnthropic(
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
            raise AssistantFailed(f"ANTHROPIC_{error.status_code}", type(error).__name__, again=again) from error
        except APIConnectionError as error:
            raise AssistantFailed("ANTHROPIC_AWAY", type(error).__name__) from error
        except APIError as error:
            raise AssistantFailed("ANTHROPIC_FAILED", type(error).__name__) from error

    async def _rounds(
        self, client: AsyncAnthropic, question: Question, tools: Tools
    ) -> AsyncGenerator[Said | Used, None]:
        context = question.context
        messages = _alternating([(turn.role, turn.content) for turn in context.conversation_history], question.message)
        spent = 0
        for number in range(ROUNDS):
            last = number == ROUNDS - 1
            stream = await client.messages.create(
                model=context.model,
                max_tokens=context.max_tokens,
                messages=messages,
                system=context.system_prompt or omit,
                tools=omit if last else _TOOLS,
                stream=True,
            )
            blocks: dict[int, dict[str, Any]] = {}
            arguments: dict[int, str] = {}
            reason: str | None = None
            async with stream:
                async for event in stream:
                    if event.type == "message_start":
                        spent += event.message.usage.input_tokens
                    elif event.type == "content_block_start":
                        block = event.content_block
                        if block.type == "tool_use":
                            blocks[event.index] = {"type": "tool_use", "id": block.id, "name": block.name}
                            arguments[event.index] = ""
                            check_calls(arguments.values())
                        elif block.type == "text":
                            blocks[event.index] = {"type": "text", "text": block.text}
                            if block.text:
                                yield Said(block.text)
                    elif event.type == "content_block_delta":
                        if event.delta.type == "text_delta":
                            blocks[event.index]["text"] += event.delta.text
                            yield Said(event.delta.text)
                        elif event.delta.type == "input_json_delta":
                            arguments[event.index] += event.delta.partial_json
                            check_calls(arguments.values())
                    elif event.type == "message_delta":
                        spent += event.usage.output_tokens
                        reason = event.delta.stop_reason or reason
            if not arguments or last:
                yield Used(model=context.model, tokens_used=spent, finish_reason=_finish(reason))
                return
            results: list[Any] = []
            for index, text in arguments.items():
                blocks[index]["input"] = _object(text)
                found = await use(tools, blocks[index]["name"], text.encode())
                results.append({"type": "tool_result", "tool_use_id": blocks[index]["id"], "content": found})
            said: list[Any] = [block for block in blocks.values() if block.get("text") != ""]
            messages = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": results}]


def _finish(reason: str | None) -> Literal["stop", "length"]:
    return "length" if reason == "max_tokens" else "stop"


def _object(text: str) -> dict[str, Any]:
    """What the model wrote, to be shown to it again; what is no object was refused by the tool."""
    try:
        found: dict[str, Any] = msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
    return found


def _alternating(history: list[tuple[str, str]], question: str) -> list[MessageParam]:
    """The user begins, and no side speaks twice in a row: what it said is joined."""
    joined: list[tuple[Literal["user", "assistant"], str]] = []
    for role, text in [*history, ("user", question)]:
        who: Literal["user", "assistant"] = "user" if role == "user" else "assistant"
        if joined and joined[-1][0] == who:
            joined[-1] = (who, f"{joined[-1][1]}\n\n{text}")
        elif joined or who == "user":
            joined.append((who, text))
    return [_turn(who, text) for who, text in joined]


def _turn(role: str, content: str) -> MessageParam:
    if role == "user":
        return {"role": "user", "content": content}
    return {"role": "assistant", "content": content}


_TOOLS: list[ToolParam] = [
    {"name": name, "description": description, "input_schema": schema} for name, description, schema in schemas()
]
