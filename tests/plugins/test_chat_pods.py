"""Chat over four real processes on real servers: two hold readers and phones, two only answer."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from nebengjek.bus.errors import NoResponders, RequestTimeout
from nebengjek.bus.messages import CoreMessage
from nebengjek_plugins.chat.contracts import ATTEMPT, HealthResponse, ResponseChunk, read_chunks
from tests.flows.conftest import Real
from tests.flows.fleet import PATIENCE, Fleet, Pod, Traveller, fleet
from tests.plugins.paced import END, Play
from tests.plugins.streams import Reader, reading

pytestmark = pytest.mark.real

PHONES = "users,location,match,rides,chat"
ROOT = Path(__file__).parent.parent.parent


class Town(NamedTuple):
    pods: Fleet
    folder: Path


@pytest.fixture(scope="module")
def town(runner: asyncio.Runner, real_servers: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("chat")
    started = fleet(
        real_servers,
        folder,
        (PHONES, PHONES, "chat.worker", "chat.worker"),
        PYTHONPATH=f"{ROOT}:{ROOT / 'plugins'}",
        NEBENGJEK__PLUGINS="nebengjek_plugins.chat:chat",
        NEBENGJEK__PLUGIN__CHAT__AI_PROVIDER="custom",
        NEBENGJEK__PLUGIN__CHAT__CUSTOM="tests.plugins.paced:Paced",
        NEBENGJEK__PLUGIN__CHAT__CUSTOM_OPTIONS=f'{{folder = "{folder}"}}',
        NEBENGJEK__PLUGIN__CHAT__REDELIVER_AFTER="4",
    )
    yield Town(runner.run(started.__aenter__()), folder)
    runner.run(started.__aexit__(None, None, None))


async def person(town: Town) -> Traveller:
    ani = await Traveller(town.pods).login()
    ani.travel()
    return ani


async def ask(ani: Traveller, session_id: str, text: str) -> str:
    message_id: str = (await ani.ask("POST", f"/chat/{session_id}/messages", {"message": text}))["message_id"]
    return message_id


async def answered_once(ani: Traveller, session_id: str) -> None:
    history = await ani.ask("GET", f"/chat/{session_id}/messages")
    assert [(item["role"], item["status"]) for item in history["items"]] == [
        ("assistant", "complete"),
        ("user", "complete"),
    ]


async def batches_said(pod: Pod) -> float:
    lines = (await pod.http.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("nebengjek_chat_message_bytes_count"))


async def superseded(pod: Pod) -> None:
    """It has come to the end of an answer that is not its own any more."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if 'outcome="superseded"} 1.0' in (await pod.http.get("/metrics")).text:
                return
            await asyncio.sleep(0.05)


async def worker_of(town: Town, play: Play) -> Pod:
    """Who answers it first."""
    pid = (await play.workers())[0]
    return next(pod for pod in town.pods.pods if pod.process is not None and pod.process.pid == pid)


async def staffed(town: Town, workers: int) -> None:
    """So many workers run: those that a test before this one ended are started again only where they are needed."""
    away = [pod for pod in town.pods.pods[2:] if pod.process is None]
    for pod in away[: max(0, workers - (2 - len(away)))]:
        await town.pods.restart(pod)


async def has(reader: Reader, message_id: str, text: str) -> None:
    await reader.find(lambda _: reader.text(message_id) == text, patience=PATIENCE)


async def test_readers_on_two_pods_a_phone_on_one_of_them_and_the_worker_on_a_third(runner: object, town: Town) -> None:
    ani = await person(town)
    play = Play(town.folder, "two")
    one, other = town.pods.pods[:2]
    await ani.lives_on(other)
    heard: list[bytes] = []

    async def listen(message: CoreMessage) -> None:
        heard.append(message.data)

    listening = [await town.pods.broker.subscribe(f"chat.pod.{pod.pod_id}.response", listen) for pod in (one, other)]
    before = sum([await batches_said(pod) for pod in town.pods.pods[2:]])
    async with reading(ani, "two", url=one.url) as first, reading(ani, "two", url=other.url) as second:
        message_id = await ask(ani, "two", "two")
        play.say("Once")
        for reader in (first, second):
            await has(reader, message_id, "Once ")
        (worker,) = await play.workers()
        assert worker in {pod.process.pid for pod in town.pods.pods[2:] if pod.process is not None}
        play.say("upon", "a", "time", END)
        for reader in (first, second):
            whole = await reader.expect("message_complete")
            assert whole.data["text"] == reader.text(message_id) == "Once upon a time "
    await ani.expect("chat.message", reply_to=message_id)
    said = [frame["data"]["chunk"] for frame in ani.frames if frame["event"] == "chat.chunk"]
    assert "".join(said) == "Once upon a time "
    for subscription in listening:
        await subscription.unsubscribe()
    # A batch that went to two pods is measured once.
    assert len(set(heard)) <= sum([await batches_said(pod) for pod in town.pods.pods[2:]]) - before < len(heard)
    await ani.go_home()


async def test_a_reader_that_hops_from_pod_to_pod_in_the_middle_of_an_answer_misses_nothing(
    runner: object, town: Town
) -> None:
    ani = await person(town)
    play = Play(town.folder, "hop")
    message_id = await ask(ani, "hop", "hop")
    expected, read, last = "", "", None
    for hop in range(6):
        async with reading(ani, "hop", url=town.pods.pods[hop % 2].url, last_event_id=last) as reader:
            words = [f"{hop}a", f"{hop}b"]
            play.say(*words)
            expected += "".join(f"{word} " for word in words)
            await has(reader, message_id, expected[len(read) :])
            read += reader.text(message_id)
            last = reader.last_id
        # While he is nowhere, something is said too.
        play.say(f"{hop}c")
        expected += f"{hop}c "
    play.say(END)
    async with reading(ani, "hop", url=town.pods.pods[0].url, last_event_id=last) as reader:
        whole = await reader.expect("message_complete")
        assert read + reader.text(message_id) == whole.data["text"] == expected
    await ani.go_home()


async def test_a_pod_says_how_it_is_and_one_that_hangs_does_not(runner: object, town: Town) -> None:
    ani = await person(town)
    pod, broker = town.pods.pods[1], town.pods.broker
    assert pod.process is not None
    async with reading(ani, "health", url=pod.url):
        reply = await broker.request("chat.pod.pod-2.health", b"", timeout=PATIENCE)
        health = msgspec.json.decode(reply.data, type=HealthResponse)
        assert (health.pod_id, health.status, health.active_connections) == ("pod-2", "healthy", 1)
        os.kill(pod.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RequestTimeout):
                await broker.request("chat.pod.pod-2.health", b"", timeout=0.5)
        finally:
            os.kill(pod.process.pid, signal.SIGCONT)
    with pytest.raises(NoResponders):
        await broker.request("chat.pod.pod-9.health", b"", timeout=PATIENCE)
    await ani.go_home()


async def test_a_worker_that_was_paused_and_followed_by_another_wakes_to_be_heard_no_more(
    runner: object, town: Town
) -> None:
    await staffed(town, 2)
    ani = await person(town)
    play = Play(town.folder, "pause")
    said: list[ResponseChunk] = []
    woken = asyncio.Event()

    async def listen(message: CoreMessage) -> None:
        said.extend(read_chunks(message.data))
        if any(chunk.chunk_id < ATTEMPT and chunk.chunk == "d " for chunk in said):
            woken.set()

    listening = await town.pods.broker.subscribe("chat.pod.pod-1.response", listen)
    async with reading(ani, "pause", url=town.pods.pods[0].url) as reader:
        message_id = await ask(ani, "pause", "pause")
        play.say("a", "b")
        await has(reader, message_id, "a b ")
        paused = await worker_of(town, play)
        assert paused.process is not None
        os.kill(paused.process.pid, signal.SIGSTOP)
        try:
            assert (await play.workers(2))[1] != paused.process.pid
            play.say("c")
            await has(reader, message_id, "a b c ")
        finally:
            os.kill(paused.process.pid, signal.SIGCONT)
        play.say("d")
        # It goes on as if nothing had been, to the very end.
        async with asyncio.timeout(PATIENCE):
            await woken.wait()
        await has(reader, message_id, "a b c d ")
        play.say(END)
        whole = await reader.expect("message_complete")
        assert whole.data["text"] == reader.text(message_id) == "a b c d "
        await superseded(paused)
    await listening.unsubscribe()
    # The first attempt's, the one marker, and from there on the second attempt's only.
    numbers = [one["chunk_id"] for one in reader.of("chunk")]
    begins = numbers.index(ATTEMPT)
    assert numbers == [*range(begins), *range(ATTEMPT, ATTEMPT + len(numbers) - begins)]
    assert [one["chunk_id"] for one in reader.of("chunk") if one["chunk_type"] == "system"] == [ATTEMPT]
    await answered_once(ani, "pause")
    await ani.go_home()


async def test_a_worker_that_is_killed_in_the_middle_is_followed_by_another_with_a_whole_answer(
    runner: object, town: Town
) -> None:
    await staffed(town, 2)
    ani = await person(town)
    play = Play(town.folder, "kill")
    async with reading(ani, "kill", url=town.pods.pods[0].url) as reader:
        message_id = await ask(ani, "kill", "kill")
        play.say("a", "b")
        await has(reader, message_id, "a b ")
        killed = await worker_of(town, play)
        killed.kill()
        dead, other = await play.workers(2)
        assert dead != other
        play.say("c", END)
        whole = await reader.expect("message_complete")
        assert whole.data["text"] == reader.text(message_id) == "a b c "
        markers = [one["chunk_id"] for one in reader.of("chunk") if one["chunk_type"] == "system"]
        assert markers == [ATTEMPT]
    await answered_once(ani, "kill")
    await ani.go_home()


async def test_a_worker_that_is_told_to_end_ends_its_answer_first(runner: object, town: Town) -> None:
    await staffed(town, 1)
    ani = await person(town)
    play = Play(town.folder, "drain")
    async with reading(ani, "drain", url=town.pods.pods[0].url) as reader:
        message_id = await ask(ani, "drain", "drain")
        play.say("a")
        await has(reader, message_id, "a ")
        ending = await worker_of(town, play)
        ended = asyncio.create_task(ending.end())
        play.say("b", END)
        whole = await reader.expect("message_complete")
        assert whole.data["text"] == reader.text(message_id) == "a b "
        assert await ended == 0
        assert len(await play.workers()) == 1
    await ani.go_home()


async def test_with_the_registry_gone_the_words_go_to_all_pods(runner: object, town: Town) -> None:
    # Last of all: a pod whose lines to the registry were cut refuses somebody until it has noticed each of them.
    await staffed(town, 1)
    ani = await person(town)
    play = Play(town.folder, "broadcast")
    heard: list[str] = []

    async def listen(message: CoreMessage) -> None:
        heard.extend(chunk.chunk for chunk in read_chunks(message.data))

    listening = await town.pods.broker.subscribe("chat.session.broadcast.broadcast", listen)
    async with reading(ani, "broadcast", url=town.pods.pods[1].url) as reader:
        message_id = await ask(ani, "broadcast", "broadcast")
        play.say("a")
        await has(reader, message_id, "a ")
        assert heard == []
        line = town.pods.redis_line
        line.refuse()
        line.cut()
        try:
            text = "a "
            async with asyncio.timeout(PATIENCE):
                while "b " not in heard:
                    play.say("b")
                    text += "b "
                    await has(reader, message_id, text)
            play.say(END)
            whole = await reader.expect("message_complete")
            assert whole.data["text"] == reader.text(message_id) == text
        finally:
            await line.open()
    await listening.unsubscribe()
    await ani.go_home()
