"""Answers under way: read while they are written, resumed, begun anew, given up; each reader gets a whole one, once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from nebengjek.bus.messages import CoreMessage
from nebengjek.contracts.message import uuid7
from nebengjek_plugins.chat.assistants.interface import AssistantFailed
from nebengjek_plugins.chat.contracts import ATTEMPT, ChunkBatch, ResponseChunk
from nebengjek_plugins.chat.store import begin_attempt
from tests.flows.conftest import Backend
from tests.flows.world import WAIT, Phone, Refused, World
from tests.plugins.scripted import script, settings
from tests.plugins.streams import reading

CHAT = ["nebengjek_plugins.chat:chat"]


@asynccontextmanager
async def chatting(backend: Backend, **more: Any) -> AsyncIterator[World]:
    async with backend.own_world(plugins=CHAT, plugin={"chat": settings(**more)}) as world:
        yield world


async def ask(phone: Phone, session_id: str, text: str, **more: Any) -> str:
    asked = await phone.ask("POST", f"/chat/{session_id}/messages", {"message": text, **more})
    message_id: str = asked["message_id"]
    return message_id


def chunk(world: World, session_id: str, message_id: str, number: int, text: str, **more: Any) -> ResponseChunk:
    return ResponseChunk(
        session_id=session_id,
        message_id=message_id,
        chunk_id=number,
        chunk=text,
        chunk_type=more.pop("chunk_type", "content"),
        is_final=more.pop("is_final", False),
        timestamp=world.clock.now(),
        correlation_id="corr",
        **more,
    )


async def publish(world: World, *chunks: ResponseChunk) -> None:
    """As a worker of another make would."""
    subject = f"chat.pod.{world.app.pod_id}.response"
    for one in chunks:
        await world.app.bus.direct.tell(subject, one, sensitive=False)


async def test_the_first_words_are_read_before_the_last_are_known(backend: Backend) -> None:
    said = script("slowly")
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            message_id = await ask(ani, "s1", "slowly")
            await said.say("Once ")
            assert (await reader.expect("chunk")).data["chunk"] == "Once "
            assert (await ani.expect("chat.chunk"))["data"]["chunk"] == "Once "
            assert not reader.of("message_complete")
            await said.say("upon ", "a time", None)
            whole = (await reader.expect("message_complete")).data
            assert whole["text"] == reader.text(message_id) == "Once upon a time"
            assert reader.of("chunk")[-1]["metadata"] == {
                "model": "scripted",
                "tokens_used": 7,
                "finish_reason": "stop",
            }


async def test_a_reader_who_comes_again_goes_on_where_he_was(backend: Backend) -> None:
    said = script("resume")
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            message_id = await ask(ani, "s1", "resume")
            await said.say("one ", "two ")
            await reader.find(lambda _: reader.text(message_id) == "one two ")
        await said.say("three ")
        async with reading(ani, "s1", last_event_id=reader.last_id) as again:
            assert again.heard[0].data["resumed"] is True
            await again.find(lambda _: again.text(message_id) == "three ")
        await said.say("four", None)
        await world.quiet()
        # The answer has ended, and is in the database alone for whoever comes now.
        async with reading(ani, "s1", last_event_id=again.last_id) as third:
            whole = (await third.expect("message_complete")).data
            assert reader.text(message_id) + again.text(message_id) + third.text(message_id) == whole["text"]
            assert whole["text"] == "one two three four"
        async with reading(ani, "s1", last_event_id=third.last_id) as last:
            await ask(ani, "s1", "unknown")
            await last.expect("error")
            assert [one.event for one in last.heard] == ["connected", "error"]


async def test_several_readers_hear_the_same_each_from_where_he_is(backend: Backend) -> None:
    said = script("many")
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as one:
            message_id = await ask(ani, "s1", "many")
            await said.say("begun ")
            await one.expect("chunk")
            async with reading(ani, "s1") as other:
                await said.say("ended", None)
                for reader in (one, other):
                    await reader.expect("message_complete")
                    assert reader.text(message_id) == "begun ended"
                    assert len(reader.of("message_complete")) == 1


async def test_two_answers_at_once_are_not_mixed(backend: Backend) -> None:
    first, second = script("first"), script("second")
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            one, two = await ask(ani, "s1", "first"), await ask(ani, "s1", "second")
            await first.say("A1 ")
            await second.say("B1 ")
            await reader.find(lambda _: bool(reader.text(one) and reader.text(two)))
            cut = reader.last_id
        await second.say("B2", None)
        await ani.expect("chat.message", reply_to=two)
        async with reading(ani, "s1", last_event_id=cut) as again:
            await again.expect("message_complete", reply_to=two)
            await first.say("A2", None)
            await again.expect("message_complete", reply_to=one)
            assert (again.text(one), again.text(two)) == ("A2", "B2")


async def test_an_attempt_that_fails_is_followed_by_a_whole_one_after_one_marker(backend: Backend) -> None:
    said = script("again")
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            message_id = await ask(ani, "s1", "again")
            await said.say("half of ", RuntimeError("the worker stumbled"))
            await said.say("a whole answer", None, attempt=2)
            whole = (await reader.expect("message_complete")).data
            assert whole["text"] == reader.text(message_id) == "a whole answer"
            markers = [one for one in reader.of("chunk") if one["chunk_type"] == "system"]
            assert [(one["chunk_id"], one["chunk"]) for one in markers] == [(ATTEMPT, "restart")]
            # A reader who has a part of the first attempt only is told to begin anew.
            half = next(one.id for one in reader.heard if one.event == "chunk")
        async with reading(ani, "s1", last_event_id=half) as late:
            await late.expect("message_complete")
            assert late.text(message_id) == "a whole answer"
            assert next(one["chunk_type"] for one in late.of("chunk")) == "system"


async def test_a_question_whose_worker_was_taken_over_by_one_that_died_is_answered(backend: Backend) -> None:
    said = script("taken over")
    async with chatting(backend, redeliver_after=1) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            message_id = await ask(ani, "s1", "taken over")
            await said.say("half of ")
            await reader.find(lambda _: bool(reader.text(message_id)))
            async with world.app.database.begin() as tx:
                # Another worker believed this one dead, and died itself as soon as it had begun.
                assert await begin_attempt(tx, "s1", message_id) == 2
            await said.say(None)
            await said.say("a whole answer", None, attempt=2)
            whole = (await reader.expect("message_complete")).data
            assert whole["text"] == reader.text(message_id) == "a whole answer"


async def test_a_missing_chunk_is_waited_for_thirty_seconds_then_the_message_is_incomplete(backend: Backend) -> None:
    said = script("lost")
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            # Nobody of ours answers this one.
            foreign = f"msg_{uuid7()}"
            await publish(
                world,
                chunk(world, "s1", foreign, 2, "there"),
                chunk(world, "s1", foreign, 0, "I am "),
                chunk(world, "s1", foreign, 3, "", is_final=True),
            )
            await reader.expect("chunk", chunk_id=0)
            await world.advance(29)
            assert not reader.of("error")
            await world.advance(2)
            error = (await reader.expect("error")).data
            assert error["error"]["code"] == "MISSING_CHUNK"
            assert (error["chunk_type"], error["is_final"]) == ("error", True)
            assert reader.text(foreign) == "I am "
        history = await ani.ask("GET", "/chat/s1/messages")
        assert [(item["status"], item["text"]) for item in history["items"]] == [("incomplete", "I am ")]
        assert said.asked == []


async def test_a_worker_of_another_make_is_heard_in_any_order_and_its_answer_is_stored_once(backend: Backend) -> None:
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            one = [chunk(world, "s1", "m1", n, f"{n} ", is_final=n == 4) for n in range(5)]
            await publish(world, one[3], one[1], one[1])
            batch = ChunkBatch(session_id="s1", chunks=[one[4], one[0], one[3], one[2], one[2]])
            await world.app.bus.direct.tell(f"chat.pod.{world.app.pod_id}.response", batch)
            whole = (await reader.expect("message_complete")).data
            assert whole["text"] == reader.text("m1") == "0 1 2 3 4 "
            assert [one["chunk_id"] for one in reader.of("chunk")] == [0, 1, 2, 3, 4]
        history = await ani.ask("GET", "/chat/s1/messages")
        assert len(history["items"]) == 1


async def test_chunks_that_were_lost_are_said_again_or_taken_from_the_database(backend: Backend) -> None:
    said = script("heal")
    async with chatting(backend) as world:
        ani = await world.passenger()
        hub = _hub(world)
        async with reading(ani, "s1") as reader:
            message_id = await ask(ani, "s1", "heal")
            await said.say("one ")
            await reader.expect("chunk")
            room = hub.rooms["s1"]
            live = room.live[message_id]
            # As if what comes next had not reached this pod.
            live.buffer.next_id += 5
            await said.say("two ", "three", None)
            await world.quiet()
            live.buffer.next_id -= 5
            await world.advance(2)
            whole = (await reader.expect("message_complete")).data
            assert whole["text"] == reader.text(message_id) == "one two three"


async def test_limits(backend: Backend) -> None:
    said = [script(f"q{n}") for n in range(5)]
    async with chatting(
        backend, questions_open=2, messages_per_minute=13, max_answer=100, tokens_per_day=27, max_tokens=7
    ) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            asked = [ask(ani, "s1", "q0", message_id="mine") for _ in range(5)]
            assert await asyncio.gather(*asked) == ["mine"] * 5
            assert await ask(ani, "s1", "q0", message_id="mine") == "mine"
            with pytest.raises(Refused, match="ID_REUSED"):
                await ask(ani, "s2", "q0", message_id="mine")
            history = await ani.ask("GET", "/chat/s1/messages")
            assert (len(history["items"]), history["session"]["last_number"]) == (1, 1)
            at_once = await asyncio.gather(*(ask(ani, "s1", "q1") for _ in range(2)), return_exceptions=True)
            assert [one.code for one in at_once if isinstance(one, Refused)] == ["TOO_MANY_OPEN"]
            await said[0].say("x" * 90, "y" * 90, "z")
            await reader.expect("message_complete", reply_to="mine")
            assert reader.text("mine") == "x" * 90 + "y" * 10
            assert reader.of("chunk")[-1]["metadata"]["finish_reason"] == "length"
            await said[1].say("short", None)
            for text in ("q2", "q3"):
                number = await ask(ani, "s1", text)
                await said[int(text[1])].say(text, None)
                await reader.expect("message_complete", reply_to=number)
            with pytest.raises(Refused, match="BUDGET_USED"):
                await ask(ani, "s1", "q4")
            with pytest.raises(Refused, match="INVALID"):
                await ask(ani, "s1", "x" * 2001)
            with pytest.raises(Refused, match="INVALID"):
                await ask(ani, "s2", "q4", context={"model": "dearer"})
            with pytest.raises(Refused, match="RATE_LIMITED"):
                await ask(ani, "s2", "q4")


async def test_questions_asked_at_once_do_not_spend_the_same_tokens_and_failed_ones_give_them_back(
    backend: Backend,
) -> None:
    said, failing = script("dear"), script("fails")
    async with chatting(backend, tokens_per_day=27, max_tokens=10) as world:
        ani = await world.passenger()
        # Before the first word a failure costs nothing; broken off, an answer costs the two tokens that were said.
        for attempt, words in ((1, ()), (2, ("eight ", "ch"))):
            message_id = await ask(ani, "s0", "fails")
            await failing.say(*words, AssistantFailed("AWAY", "x", again=False), attempt=attempt)
            await ani.expect("chat.message", reply_to=message_id, status="incomplete")
        asked = await asyncio.gather(*(ask(ani, f"s{n}", "dear") for n in range(6)), return_exceptions=True)
        refused = [one for one in asked if isinstance(one, Refused)]
        # 10 and 10 are reserved, and the 5 that are left.
        assert [one for one in asked if isinstance(one, BaseException) and one not in refused] == []
        assert len(refused) == 3
        assert all("BUDGET_USED" in str(one) for one in refused)
        await said.begun(3)
        assert sorted(question.context.max_tokens for question in said.asked) == [5, 10, 10]
        for attempt in (1, 2, 3):
            await said.say("well", None, attempt=attempt)
        for one in asked:
            if isinstance(one, str):
                await ani.expect("chat.message", reply_to=one)
        # Each took 7 and gave back the rest of what was kept for it.
        await ask(ani, "s7", "dear")
        await said.begun(4)
        assert said.asked[3].context.max_tokens == 4
        # A worker that drains would wait for its end.
        await said.say("well", None, attempt=4)


async def test_what_chat_does_is_among_the_metrics(backend: Backend) -> None:
    said = script("count me")
    async with chatting(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader, httpx.AsyncClient() as http:

            async def metrics() -> dict[str, float]:
                text = (await http.get(f"{world.url}/metrics")).raise_for_status().text
                lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("nebengjek_chat_")]
                return {name.removeprefix("nebengjek_chat_"): float(value) for name, _, value in lines}

            before = await metrics()
            assert (before["readers"], before["answers_open"], before["questions_total"]) == (1, 0, 0)
            await ask(ani, "s1", "count me")
            await said.say("half")
            await reader.expect("chunk")
            meanwhile = await metrics()
            assert (meanwhile["answers_open"], meanwhile["questions_total"]) == (1, 1)
            assert meanwhile["first_chunk_seconds_count"] == 1
            await said.say(RuntimeError("the worker stumbled"))
            await said.say("whole", None, attempt=2)
            await reader.expect("message_complete")
            await ask(ani, "s1", "of no script")
            await reader.expect("error")
            await world.quiet()
            after = await metrics()
        assert after["answers_open"] == 0
        assert after["chunks_total"] == 2
        assert after["answer_seconds_count"] == 2
        assert after["message_bytes_count"] == after["delivery_seconds_count"] > 0
        outcomes = {name: value for name, value in after.items() if name.startswith("answers_total")}
        assert outcomes == {
            'answers_total{outcome="restarted"}': 1,
            'answers_total{outcome="complete"}': 1,
            'answers_total{outcome="failed"}': 1,
        }


async def test_a_temperature_is_refused_where_the_provider_takes_none(backend: Backend) -> None:
    async with chatting(backend, ai_provider="anthropic", anthropic_api_key="key", model="some-model") as world:
        ani = await world.passenger()
        with pytest.raises(Refused, match=r"context\.temperature"):
            await ask(ani, "s1", "warmer", context={"temperature": 0.5})


async def test_a_quiet_stream_is_kept_open_with_comments_and_ends_with_the_server(backend: Backend) -> None:
    async with chatting(backend, ping_seconds=0.05) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            await reader.pinged()
            world.app.closing()
            await reader.over()


async def test_what_people_write_is_sealed_on_its_way(backend: Backend) -> None:
    said = script("a secret of mine")
    async with backend.own_world(plugins=CHAT, plugin={"chat": settings()}, nats__event_keys="5a" * 32) as world:
        passed: list[CoreMessage] = []
        wanted = {"chat.workflow.execute", "chat.answered", f"chat.pod.{world.app.pod_id}"}
        all_passed = asyncio.Event()

        async def look(message: CoreMessage) -> None:
            passed.append(message)
            if wanted <= {one.subject.rpartition(".")[0] for one in passed}:
                all_passed.set()

        listening = await world.app.broker.subscribe("chat.>", look)
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            message_id = await ask(ani, "s1", "a secret of mine")
            await said.say("well ", "kept", None)
            await reader.expect("message_complete")
            assert reader.text(message_id) == "well kept"
        async with asyncio.timeout(3 * WAIT):
            await all_passed.wait()
        await listening.unsubscribe()
        for message in passed:
            assert b"secret" not in message.data
            assert b"kept" not in message.data


async def test_a_stream_ends_with_the_login(backend: Backend) -> None:
    async with chatting(backend, ping_seconds=0.05) as world:
        ani, budi = await world.passenger(), await world.passenger()
        async with reading(ani, "s1") as reader, reading(budi, "s2") as other:
            await ani.ask("POST", "/auth/logout", {"refresh_token": ani.refresh_token})
            await reader.over()
            assert not other.ended
            world.clock.advance(25 * 3600)
            await other.over()


async def test_who_deletes_his_account_takes_his_words_along(backend: Backend) -> None:
    said = script("forget me")
    async with chatting(backend) as world:
        ani = await world.passenger()
        await ask(ani, "s1", "forget me")
        await said.say("never", None)
        await ani.expect("chat.message")
        await ani.ask("DELETE", "/users/me")
        await world.quiet()
        budi = await world.passenger()
        # The id is anybody's again, and nothing is in it.
        await ask(budi, "s1", "mine now")
        assert [item["text"] for item in (await budi.ask("GET", "/chat/s1/messages"))["items"]][-1] == "mine now"


async def test_an_answer_whose_process_ended_is_begun_anew_by_the_next_one(backend: Backend) -> None:
    said = script("night")
    async with backend.own_world(
        plugins=CHAT, plugin={"chat": settings(redeliver_after=10)}, nats__drain_timeout=0.2
    ) as world:
        ani = await world.passenger()
        async with reading(ani, "s1") as reader:
            message_id = await ask(ani, "s1", "night")
            await said.say("half ")
            await reader.find(lambda _: reader.text(message_id) == "half ")
            await ani.disconnect()
            await world.restart()
            await reader.over()
        async with reading(ani, "s1", last_event_id=reader.last_id) as again:
            await said.say("a whole one", None, attempt=2)
            whole = (await again.expect("message_complete", reply_to=message_id)).data
            assert whole["text"] == again.text(message_id) == "a whole one"
            assert [one["chunk_type"] for one in again.of("chunk")].count("system") == 1


def _hub(world: World) -> Any:
    (module,) = (one for one in world.app.modules if one.name == "chat")
    assert module.closing is not None
    return module.closing.__self__  # type: ignore[attr-defined]
