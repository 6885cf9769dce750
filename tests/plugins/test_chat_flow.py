"""A question and its answer, from the phone to the worker and back, embedded and on real servers."""

import asyncio
from typing import Any

import pytest

from nebengjek_plugins.chat import service
from tests.flows.conftest import Backend, Embedded
from tests.flows.world import Refused
from tests.plugins.streams import reading

CHAT: dict[str, Any] = {"plugins": ["nebengjek_plugins.chat:chat"]}


async def test_a_question_is_answered_in_the_stream_on_the_socket_and_in_the_history(backend: Backend) -> None:
    async with backend.own_world(**CHAT) as world:
        ani = await world.passenger()
        async with reading(ani, "sess_1") as reader:
            asked = await ani.ask("POST", "/chat/sess_1/messages", {"message": "where is my driver"})
            whole = (await reader.expect("message_complete")).data
            assert whole["reply_to"] == asked["message_id"]
            assert whole["correlation_id"] == asked["correlation_id"]
            assert reader.text(asked["message_id"]) == whole["text"]
            chunks = reader.of("chunk")
            assert [chunk["chunk_id"] for chunk in chunks] == list(range(len(chunks)))
            assert [chunk["is_final"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        told = await ani.expect("chat.message", message_id=whole["message_id"])
        assert told["data"]["text"] == whole["text"]
        said = [frame["data"]["chunk"] for frame in ani.frames if frame["event"] == "chat.chunk"]
        assert "".join(said) == whole["text"]
        history = await ani.ask("GET", "/chat/sess_1/messages")
        assert [item["role"] for item in history["items"]] == ["assistant", "user"]
        assert history["items"][0]["text"] == whole["text"]


async def test_who_asks_first_and_reads_then_is_answered_too(backend: Backend) -> None:
    async with backend.own_world(**CHAT) as world:
        ani = await world.passenger()
        asked = await ani.ask("POST", "/chat/later/messages", {"message": "where is my driver"})
        await world.quiet()
        async with reading(ani, "later") as reader:
            whole = (await reader.expect("message_complete", reply_to=asked["message_id"])).data
            assert reader.text(asked["message_id"]) == whole["text"]


async def test_a_session_is_its_owners_alone(backend: Backend) -> None:
    async with backend.own_world(**CHAT) as world:
        ani, eve = await asyncio.gather(world.passenger(), world.passenger())
        await ani.ask("POST", "/chat/private/messages", {"message": "where is my driver"})
        for method, path, body in (
            ("POST", "/chat/private/messages", {"message": "who is that"}),
            ("GET", "/chat/private/messages", None),
            ("GET", "/chat/private/stream", None),
            ("POST", "/chat/private/read", {"number": 1}),
        ):
            with pytest.raises(Refused, match="FORBIDDEN"):
                await eve.ask(method, path, body)
        with pytest.raises(Refused, match="INVALID_SESSION_ID"):
            await ani.ask("POST", "/chat/a.b/messages", {"message": "x"})
        with pytest.raises(Refused, match="NOT_FOUND"):
            await ani.ask("POST", "/chat/match-1/messages", {"message": "x"})


async def test_who_asks_when_too_many_wait_is_told_so_and_may_ask_again(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded.own_world(**CHAT) as world:
        ani = await world.passenger()
        question = {"message": "where is my driver", "message_id": "q1"}
        path = "/chat/s1/messages"
        with monkeypatch.context() as full:
            full.setattr(service, "WAITING", 0)
            refused = await ani.http("POST", path, question)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "messages wait to be stored" in refused.json()["detail"]
        # All of them at once, more than are stored at the same time: each is taken.
        asked = (ani.ask("POST", f"/chat/many-{number}/messages", {"message": "x"}) for number in range(18))
        await asyncio.gather(*asked, ani.ask("POST", path, question))
        items = (await ani.ask("GET", path))["items"]
        assert [item["message_id"] for item in items if item["role"] == "user"] == ["q1"]
