"""What a worker says goes out in batches of 50 ms or 100 chunks; of many answers at once in larger ones."""

import pytest

from nebengjek.app import App
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.clock import VirtualClock
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messages import CoreMessage
from nebengjek.clock import ManualClock
from nebengjek_plugins.chat import worker
from nebengjek_plugins.chat.contracts import read_chunks
from tests.flows.conftest import Embedded
from tests.flows.world import running, settings_for
from tests.plugins.scripted import script, settings


async def test_batches_end_by_number_or_by_time_and_the_first_and_the_last_words_wait_for_neither(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = VirtualClock()
    given = settings_for(
        (await embedded.fresh())["database_url"],
        plugins=["nebengjek_plugins.chat:chat"],
        plugin={"chat": settings()},
    )

    def make(clock: ManualClock) -> App:
        return App(given, clock=clock, sweeping=False, broker=MemoryBroker(MemoryServer(clock=time)))

    said = script("a long answer")
    batches: list[list[str]] = []

    async def listen(message: CoreMessage) -> None:
        batches.append([chunk.chunk for chunk in read_chunks(message.data)])

    async with running(make) as world:
        ani = await world.passenger()
        await world.app.broker.subscribe(f"chat.pod.{world.app.pod_id}.response", listen)
        await ani.ask("POST", "/chat/s1/messages", {"message": "a long answer"})
        words = [f"{number} " for number in range(250)]
        await said.say(*words)
        # No time passes: the first words have gone at once, of the others the full hundreds.
        await ani.expect("chat.chunk", chunk=words[200])
        assert batches == [words[:1], words[1:101], words[101:201]]
        await said.say("and ")
        await time.advance(0.049)
        assert len(batches) == 3
        await time.advance(0.001)
        assert batches[3:] == [[*words[201:], "and "]]
        await said.say("so on", None)
        await ani.expect("chat.message")
        assert batches[4:] == [["so on"], [""]]
        # As if a hundred answers were under way: each is said half as often as alone.
        monkeypatch.setattr(worker, "BATCHES_A_SECOND", 10)
        batches.clear()
        said = script("another")
        await ani.ask("POST", "/chat/s2/messages", {"message": "another"})
        await said.say("one ", "two ", "three ")
        await ani.expect("chat.chunk", chunk="one ")
        await time.advance(0.099)
        assert batches == [["one "]]
        await time.advance(0.001)
        assert batches[1:] == [["two ", "three "]]
        await said.say(None)
        await ani.expect("chat.message", session_id="s2")
