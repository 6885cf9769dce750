"""docs/troubleshooting.md: what its commands are said to print is what they print, on a real server in that state."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from nebengjek.app import App
from nebengjek.bus.specs import ConsumerInfo, ConsumerSpec
from nebengjek.server import Server
from nebengjek.settings import DEVELOPMENT_ADMIN_KEY, load
from tests.servers import NatsServer, nats_server

pytestmark = pytest.mark.real

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
GOLDEN = ROOT / "tests" / "contracts" / "golden"
PRESENCE = '{"type":"user.presence","user_id":"u","version":1,"online":true}'


@dataclass
class Site:
    """A pod with the settings' names of the document, and its server."""

    app: App
    url: str
    nats: NatsServer

    async def publish(self, subject: str, text: str) -> None:
        await asyncio.wait_for(self.app.broker.submit(subject, text.encode(), {}), 5)

    async def until(self, consumer: str, holds: Callable[[ConsumerInfo], bool], stream: str = "USER_STREAM") -> None:
        async with asyncio.timeout(10):
            while not holds(await self.app.broker.consumer_info(stream, consumer)):  # noqa: ASYNC110 - it does not tell
                await asyncio.sleep(0.02)


@asynccontextmanager
async def site(nats: NatsServer, folder: Path) -> AsyncIterator[Site]:
    env = {
        "NATS_URL": nats.url,
        "NATS_CLIENT_ID": "pod-1",
        "DATABASE_URL": f"sqlite:///{folder}/x.sqlite3",
        "NEBENGJEK__WEB__PORT": "0",
        "NEBENGJEK__NATS__LAG_ALARM": "10",
    }
    app = App(load(env=env), sweeping=False)
    server = Server(app)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    try:
        yield Site(app, server.url, nats)
    finally:
        await server.shutdown()


# -- the cases


async def nothing_is_received(it: Site) -> None:
    until = datetime.now(UTC) + timedelta(minutes=5)
    await it.app.broker.pause_consumer("USER_STREAM", "user_presence_match", until)
    for n in range(12):
        await it.publish(f"user.presence.u{n}", PRESENCE)


async def the_same_comes_again(it: Site) -> None:
    await it.publish("ride.pickup.x", (GOLDEN / "ride.pickup.json").read_text(encoding="utf-8"))
    await it.until("ride_pickup_match", lambda info: info.num_redelivered == 1, "RIDE_STREAM")
    await it.publish("user.beacon.u1", '{"type":"user.beacon","user_id":"u1"}')
    await it.until("user_beacon_match", lambda info: info.delivered.stream == 1 and info.num_ack_pending == 0)


async def memory_grows(it: Site) -> None:
    await it.app.broker.create_consumer(
        "USER_STREAM", ConsumerSpec(name="user_created_crm", filters=("user.created.*",))
    )
    for n in range(200):
        await it.publish(f"user.created.u{n}", '{"type":"user.created","user_id":"u","version":1}' + " " * 1000)


async def the_connection(it: Site) -> None:
    await asyncio.to_thread(it.nats.stop)
    async with asyncio.timeout(10):
        while "Refused" not in str(it.app.broker.connection().error):  # noqa: ASYNC110 - it does not tell
            await asyncio.sleep(0.02)


CASES: dict[str, Callable[[Site], Awaitable[None]]] = {
    "Nothing is received": nothing_is_received,
    "The same comes again": the_same_comes_again,
    "Memory grows": memory_grows,
    "The connection": the_connection,
}


def blocks(heading: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a case, in their order."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", section, re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


async def run(command: str, url: str) -> str:
    program, *words = command.split()
    if program == "curl":
        async with httpx.AsyncClient() as client:
            return (await client.get(words[-1].replace("http://127.0.0.1:8000", url))).text
    asking = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", program, *words),
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NEBENGJEK_URL": url,
            "NEBENGJEK__ADMIN__API_KEY": DEVELOPMENT_ADMIN_KEY,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    return (await asking.communicate())[0].decode()


def plain(text: str) -> list[str]:
    """Without what differs from time to time (clocks, ages, ids of chance), and without rulers and columns."""
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "TIME", text)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\b\d+ s\b", "N s", text)
    text = re.sub(r"\b\d+\.\d\b(?! MiB)", "N.N", text)
    text = re.sub(r"TIME[+\d:]*", "TIME", text)
    # asyncio's own loop, where uvloop is not installed.
    text = re.sub(r"Connect call failed \([^)]*\)", "Connection refused", text)
    lines = [" ".join(re.sub("[─│╭╮╰╯]", " ", line).split()) for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("heading", CASES)
async def test_the_commands_print_what_the_page_says(heading: str, tmp_path: Path) -> None:
    said = blocks(heading)
    assert said
    with capture_logs(), nats_server(access="") as nats:
        async with site(nats, tmp_path) as it:
            await CASES[heading](it)
            for command, expected in said:
                output = await run(command, it.url)
                pattern = r"\n".join(r"(?:.*\n)*?.*" if line == "…" else re.escape(line) for line in plain(expected))
                assert re.fullmatch(pattern, "\n".join(plain(output))), f"{command}\n{output}"
