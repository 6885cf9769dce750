"""The server of a run: one that is there already, or a process of our own that ends with the run."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct

from nebengjek.errors import NebengJekError

READY_SECONDS = 60.0
REACHED_SECONDS = 10.0
"""A server that somebody else runs should be there already."""
DRAIN_SECONDS = 40.0
TAIL_LINES = 30
DEVELOPMENT_ADMIN_KEY = "development-only-admin-key-change-me"
"""The default of the development profile; NEBENGJEK__ADMIN__API_KEY says otherwise."""


class ServerError(NebengJekError):
    """The server does not start, or has ended in the middle; the text ends with the tail of its log."""


class Streams(Struct, frozen=True, kw_only=True):
    """What an operator sees: messages ever published per stream, dead letters; ``refused``: why he sees nothing."""

    messages: dict[str, int] = {}
    dead_letters: int = 0
    refused: str | None = None


class Server(Struct, frozen=True, kw_only=True):
    """``process`` and ``log`` are None for a server that somebody else runs."""

    url: str
    process: asyncio.subprocess.Process | None = None
    log: Path | None = None

    @property
    def has_died(self) -> bool:
        return self.process is not None and self.process.returncode is not None

    def tail(self) -> str:
        """The last lines of its log, for people."""
        if self.log is None or not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


@asynccontextmanager
async def server_of(url: str | None) -> AsyncIterator[Server]:
    """The server at ``url``, or a new one with everything embedded but what the environment names.

    Raises ServerError when it is not ready in time.
    """
    if url is not None:
        server = Server(url=url.rstrip("/"))
        await _ready(server)
        yield server
        return
    with tempfile.TemporaryDirectory(prefix="nebengjek-") as folder:
        server = await _start(Path(folder))
        try:
            await _ready(server)
            yield server
        finally:
            await _stop(server)


def environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What the child gets: the real servers named by the caller, a fresh SQLite file otherwise, no profile."""
    child = {key: value for key, value in given.items() if key != "NEBENGJEK_SETTINGS"}
    child.setdefault("DATABASE_URL", f"sqlite:///{folder / 'demo.sqlite3'}")
    return child


async def _start(folder: Path) -> Server:
    port = _free_port()
    log = folder / "server.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "nebengjek", "run", "--port", str(port)),
            env=environment(os.environ, folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
        )
    return Server(url=f"http://127.0.0.1:{port}", process=process, log=log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _ready(server: Server) -> None:
    deadline = time.monotonic() + (REACHED_SECONDS if server.process is None else READY_SECONDS)
    answer = "no answer"
    async with httpx.AsyncClient(base_url=server.url, timeout=5) as http:
        while time.monotonic() < deadline and not server.has_died:
            try:
                response = await http.get("/health/ready")
            except httpx.TransportError as error:
                answer = type(error).__name__
            else:
                if response.is_success:
                    return
                answer = f"{response.status_code} {response.text[:300]}"
            await asyncio.sleep(0.05)
    raise ServerError(f"{server.url} is not ready: {answer}\n{server.tail()}".rstrip())


async def _stop(server: Server) -> None:
    process = server.process
    if process is None or process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            code = await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ServerError(f"the server did not drain in {DRAIN_SECONDS:.0f} s\n{server.tail()}") from None
    if code != 0:
        raise ServerError(f"the server ended with {code}\n{server.tail()}")


async def look_at_streams(http: httpx.AsyncClient, env: Mapping[str, str] = os.environ) -> Streams:
    """Ask as an operator; a server that does not let us look is said in ``refused``."""
    headers = {"X-API-Key": env.get("NEBENGJEK__ADMIN__API_KEY", DEVELOPMENT_ADMIN_KEY)}
    try:
        streams = await http.get("/admin/streams", headers=headers)
        dead = await http.get("/admin/dead-letters", headers=headers)
    except httpx.TransportError as error:
        return Streams(refused=type(error).__name__)
    for answer in (streams, dead):
        if not answer.is_success:
            return Streams(refused=f"{answer.request.url.path} says {answer.status_code}")
    messages = {str(item["name"]): int(item.get("last_seq", item.get("messages", 0))) for item in _items(streams)}
    return Streams(messages=messages, dead_letters=max(len(_items(dead)), messages.get("DEAD_LETTER_STREAM", 0)))


def _items(answer: httpx.Response) -> list[dict[str, Any]]:
    """A list, or an object that holds one."""
    body = answer.json()
    if isinstance(body, dict):
        body = next((value for value in body.values() if isinstance(value, list)), [])
    return list(body)
