"""Models of other people answer through their official clients, over real HTTP, in their documented wire formats."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nebengjek.errors import Misconfigured
from nebengjek_plugins.chat.assistants.choice import assistants
from nebengjek_plugins.chat.settings import ChatSettings
from tests.flows.conftest import Embedded
from tests.flows.world import World
from tests.plugins.providers import DONE, Provider, block, completion, message_end, message_start, provider
from tests.plugins.streams import reading

ROOT = Path(__file__).parent.parent.parent


@asynccontextmanager
async def asking(embedded: Embedded, name: str, *, tries: int = 2) -> AsyncIterator[tuple[World, Provider]]:
    async with provider() as server:
        base = f"{server.url}/v1" if name == "openai" else server.url
        table = {
            "ai_provider": name,
            "model": "a-model",
            "max_tokens": 77,
            "system_prompt": "Be brief.",
            f"{name}_api_key": "key-of-ours",
            f"{name}_base_url": base,
            "tries": tries,
        }
        async with embedded.own_world(plugins=["nebengjek_plugins.chat:chat"], plugin={"chat": table}) as world:
            yield world, server


async def test_openai_streams_uses_tools_and_is_counted(embedded: Embedded) -> None:
    async with asking(embedded, "openai") as (world, server):
        ani = await world.passenger()
        gate = asyncio.Event()
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "present_state", "arguments": ""}}
        server.answers = [
            [
                completion({"role": "assistant", "content": None, "tool_calls": [call]}),
                completion({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
                completion({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
                completion({}, finish="tool_calls"),
                completion(None, usage=30),
                DONE,
            ],
            [
                completion({"role": "assistant", "content": "You have "}),
                gate,
                completion({"content": "no ride."}),
                completion({}, finish="stop"),
                completion(None, usage=12),
                DONE,
            ],
        ]
        async with reading(ani, "s1") as reader:
            asked = await ani.ask("POST", "/chat/s1/messages", {"message": "where is my driver"})
            # What the provider has said is read while it says the rest.
            await reader.find(lambda _: reader.text(asked["message_id"]) == "You have ")
            gate.set()
            whole = (await reader.expect("message_complete")).data
            assert whole["text"] == "You have no ride."
            metadata = reader.of("chunk")[-1]["metadata"]
            assert metadata == {"model": "a-model", "tokens_used": 42, "finish_reason": "stop"}
        first, second = server.asked
        assert (first.path, first.headers["authorization"]) == ("/v1/chat/completions", "Bearer key-of-ours")
        assert (first.body["model"], first.body["max_completion_tokens"], first.body["stream"]) == ("a-model", 77, True)
        assert first.body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "where is my driver"},
        ]
        names = {tool["function"]["name"] for tool in first.body["tools"]}
        assert names == {"present_state", "other_party", "recent_rides", "ride", "hand_over"}
        used, found = second.body["messages"][2:]
        assert used["tool_calls"][0]["function"] == {"name": "present_state", "arguments": "{}"}
        assert (found["role"], found["tool_call_id"]) == ("tool", "call_1")
        assert '"ride":null' in found["content"]


async def test_openai_that_fails_is_asked_again_and_one_that_refuses_is_not(embedded: Embedded) -> None:
    async with asking(embedded, "openai") as (world, server):
        ani = await world.passenger()
        server.answers = [
            (429, {"error": {"message": "slow down", "type": "rate_limit", "code": "rate_limit"}}),
            [completion({"content": "cut off"}), completion({}, finish="length"), completion(None, usage=5), DONE],
            (401, {"error": {"message": "no such key", "type": "invalid_request_error", "code": "invalid_api_key"}}),
        ]
        async with reading(ani, "s1") as reader:
            asked = await ani.ask("POST", "/chat/s1/messages", {"message": "one"})
            await reader.expect("message_complete", reply_to=asked["message_id"])
            assert reader.text(asked["message_id"]) == "cut off"
            assert reader.of("chunk")[-1]["metadata"]["finish_reason"] == "length"
            refused = await ani.ask("POST", "/chat/s1/messages", {"message": "two"})
            error = await reader.expect("error", message_id=refused["message_id"])
            assert error.data["error"]["code"] == "OPENAI_401"
        assert [one.body["messages"][-1]["content"] for one in server.asked] == ["one", "one", "two"]
        # What was said before goes along.
        assert server.asked[2].body["messages"][1:3] == [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "cut off"},
        ]
        history = await ani.ask("GET", "/chat/s1/messages")
        assert [item["status"] for item in history["items"]] == ["incomplete", "complete", "complete", "complete"]
        assert history["items"][0]["error"] == "OPENAI_401"


async def test_anthropic_streams_uses_tools_and_is_counted(embedded: Embedded) -> None:
    async with asking(embedded, "anthropic") as (world, server):
        ani = await world.passenger()
        gate = asyncio.Event()
        tool = {"type": "tool_use", "id": "toolu_1", "name": "hand_over", "input": {}}
        parts = ({"type": "input_json_delta", "partial_json": text} for text in ('{"reason": ', '"a helmet"}'))
        server.answers = [
            [
                message_start(10),
                *block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "One moment. "}),
                *block(1, tool, *parts),
                *message_end("tool_use", 5),
            ],
            [
                message_start(20),
                ("ping", {"type": "ping"}),
                *block(
                    0,
                    {"type": "text", "text": ""},
                    {"type": "text_delta", "text": "A colleague "},
                    gate,
                    {"type": "text_delta", "text": "will answer."},
                ),
                *message_end("end_turn", 7),
            ],
        ]
        async with reading(ani, "s1") as reader:
            asked = await ani.ask("POST", "/chat/s1/messages", {"message": "I left my helmet"})
            await reader.find(lambda _: reader.text(asked["message_id"]) == "One moment. A colleague ")
            gate.set()
            whole = (await reader.expect("message_complete")).data
            assert whole["text"] == "One moment. A colleague will answer."
            metadata = reader.of("chunk")[-1]["metadata"]
            assert metadata == {"model": "a-model", "tokens_used": 42, "finish_reason": "stop"}
        first, second = server.asked
        assert first.path == "/v1/messages"
        assert "key-of-ours" in (first.headers.get("authorization", "") + first.headers.get("x-api-key", ""))
        assert (first.body["system"], first.body["max_tokens"]) == ("Be brief.", 77)
        assert "temperature" not in first.body
        assert first.body["messages"] == [{"role": "user", "content": "I left my helmet"}]
        said, results = second.body["messages"][1:]
        assert said["content"][1] == tool | {"input": {"reason": "a helmet"}}
        assert results["content"] == [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"handed_over":true}'}
        ]


async def test_anthropic_that_is_overloaded_is_given_up_after_its_tries(embedded: Embedded) -> None:
    async with asking(embedded, "anthropic") as (world, server):
        ani = await world.passenger()
        overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        begun: list[Any] = [
            message_start(3),
            *block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Half an"}),
            ("error", overloaded),
        ]
        server.answers = [(529, overloaded), begun]
        async with reading(ani, "s1") as reader:
            asked = await ani.ask("POST", "/chat/s1/messages", {"message": "one"})
            error = (await reader.expect("error", message_id=asked["message_id"])).data
            assert error["error"]["code"].startswith("ANTHROPIC_")
            assert reader.text(asked["message_id"]) == "Half an"
        assert len(server.asked) == 2
        history = await ani.ask("GET", "/chat/s1/messages")
        assert (history["items"][0]["status"], history["items"][0]["text"]) == ("incomplete", "Half an")


async def test_a_provider_that_answers_with_anything_ends_no_worker_and_no_question_stays_open(
    embedded: Embedded,
) -> None:
    async with asking(embedded, "openai", tries=1) as (world, server):
        ani = await world.passenger()
        calls = [{"index": n, "id": f"c{n}", "function": {"name": "ride", "arguments": "{}"}} for n in range(9)]
        curious = {"name": "ride", "arguments": '{"ride_id": "\\u0000", "user_id": "somebody else"}'}
        asked_for = [{"index": 0, "id": "c", "type": "function", "function": curious}]
        halves = '{"choices": [{"index": 0, "delta": {"content": "a\\u0000b\\ud800c"}, "finish_reason": "stop"}]}'
        answers: list[tuple[str, list[Any]]] = [
            ("OPENAI_307", [(307, {})]),
            ("FAILED", [[(None, "{no json")]]),
            ("FAILED", [[(None, {"choices": [{"delta": {"content": 7}}]})]]),
            ("OPENAI_FAILED", [[(None, {"error": {"message": "no"}})]]),
            ("TOO_MANY_CALLS", [[completion({"tool_calls": calls})]]),
            (
                "",
                [
                    [completion({"tool_calls": asked_for}), completion({}, finish="tool_calls"), DONE],
                    [(None, halves), completion(None, usage=-50), DONE],
                ],
            ),
        ]
        async with reading(ani, "s1") as reader:
            for number, (code, given) in enumerate(answers):
                server.answers = list(given)
                asked = await ani.ask("POST", "/chat/s1/messages", {"message": f"question {number}"})
                if code:
                    error = await reader.expect("error", message_id=asked["message_id"])
                    assert (error.data["error"]["code"], server.answers) == (code, [])
                else:
                    whole = await reader.expect("message_complete", reply_to=asked["message_id"])
                    assert whole.data["text"] == "ab?c"
                    assert reader.of("chunk")[-1]["metadata"].get("tokens_used", 0) == 0
        assert server.asked[-1].body["messages"][-1]["content"] == "null"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"ai_provider": "oracle"}, "expected one of ride_desk, openai, anthropic, custom"),
        ({"ai_provider": "openai", "model": "m"}, "plugin.chat.openai_api_key is not set"),
        ({"ai_provider": "anthropic", "anthropic_api_key": "k"}, "plugin.chat.model is not set"),
        ({"ai_provider": "custom"}, "plugin.chat.custom is not set"),
        ({"ai_provider": "custom", "custom": "no.such:thing"}, "cannot be imported"),
    ],
)
def test_what_an_assistant_lacks_is_named_at_the_start(table: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        assistants(ChatSettings(**table))
    assert said in str(caught.value)


def test_the_clients_are_imported_only_where_the_settings_name_them() -> None:
    code = """
import sys
from nebengjek.app import App
from nebengjek.settings import Settings
app = App(Settings(profile="test", plugins=("nebengjek_plugins.chat:chat",)))
print(sorted({"openai", "anthropic", "httpx", "redis", "nats"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
