"""A WebSocket client that costs little, so that the server is what is measured; and servers as child processes."""

import asyncio
import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx


class RawSocket(asyncio.Protocol):
    """One WebSocket: ``on_text`` is called with each text frame. Frames are masked with zeroes, which costs nothing."""

    def __init__(self, on_text: Callable[["RawSocket", bytes], None]) -> None:
        self._on_text = on_text
        self._buffer = bytearray()
        self._open = False
        self._inflate: zlib._Decompress | None = None
        self.opened = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the handshake was refused"))

    def send(self, frame: bytes) -> None:
        assert self.transport is not None
        self.transport.write(frame)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._open:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(bytes(buffer[:end]).decode())
            del buffer[: end + 4]
            self._open = True
            self.opened.set_result(None)
        while len(buffer) >= 2:
            size, start = buffer[1] & 0x7F, 2
            if size == 126:
                if len(buffer) < 4:
                    return
                size, start = int.from_bytes(buffer[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(buffer[2:10], "big"), 10
            if len(buffer) < start + size:
                return
            opcode = buffer[0] & 0x0F
            payload = bytes(buffer[start : start + size])
            if buffer[0] & 0x40:
                payload = self._inflated(payload)
            del buffer[: start + size]
            if opcode == 1:
                self._on_text(self, payload)
            elif opcode == 9:
                self.send(client_frame(payload, opcode=10))

    def _inflated(self, payload: bytes) -> bytes:
        # A server without context takeover fills no window, so one decompressor reads it, too.
        if self._inflate is None:
            self._inflate = zlib.decompressobj(wbits=-15)
        return self._inflate.decompress(payload + b"\0\0\xff\xff")


def client_frame(payload: bytes, *, opcode: int = 1) -> bytes:
    """A whole masked frame (RFC 6455), its mask zero."""
    head = bytes([0x80 | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    else:
        head += bytes([0x80 | 126]) + len(payload).to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


async def open_socket(
    port: int,
    path: str,
    token: str,
    on_text: Callable[[RawSocket, bytes], None],
    *,
    receive_buffer: int | None = None,
    deflate: bool = False,
) -> RawSocket:
    """``deflate``: offer permessage-deflate.

    ``receive_buffer``: bytes that the kernel takes for a client that does not read; None = as many as it likes.
    """
    loop = asyncio.get_running_loop()
    pipe = socket.socket()
    pipe.setblocking(False)
    if receive_buffer is not None:
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await loop.sock_connect(pipe, ("127.0.0.1", port))
    _, protocol = await loop.create_connection(lambda: RawSocket(on_text), sock=pipe)
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" if deflate else ""
    key = base64.b64encode(os.urandom(16)).decode()
    protocol.send(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offer}"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    await protocol.opened
    return protocol


@dataclass
class Child:
    """A server process; ``cpu`` and ``rss_kb`` are read from /proc."""

    port: int
    process: subprocess.Popen[bytes]

    def cpu(self) -> float:
        """CPU seconds, user and system, since its start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kb(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def child(command: list[str], port: int, *, ready: str | None, env: dict[str, str] | None = None) -> Iterator[Child]:
    """Run ``command`` until the block ends; ``ready``: a path that answers 200 (None: the port is enough)."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        try:
            _wait_ready(process, port, ready)
            yield Child(port, process)
        except Exception:
            # Whatever went wrong here goes on; what the child said of it would be lost with its log.
            log.seek(0)
            sys.stderr.write(log.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait_ready(process: subprocess.Popen[bytes], port: int, ready: str | None) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ready is None:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            if httpx.get(f"http://127.0.0.1:{port}{ready}").status_code == 200:
                return
        except (OSError, httpx.HTTPError):
            pass
        time.sleep(0.02)
    raise RuntimeError(f"{command_of(process)} did not start")


def command_of(process: subprocess.Popen[bytes]) -> str:
    return " ".join(map(str, process.args)) if isinstance(process.args, list) else str(process.args)


@contextlib.contextmanager
def nebengjek(**env: str) -> Iterator[Child]:
    """The product as ``nebengjek run`` starts it, with frames unlimited; embedded unless ``env`` names servers."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "DATABASE_URL": f"sqlite:///{folder}/bench.sqlite3",
            "NEBENGJEK__WEB__FRAMES_PER_SECOND": "100000",
            "NEBENGJEK__WEB__FRAME_BURST": "100000",
            "NEBENGJEK__WEB__COMMANDS_PER_SECOND": "100000",
            "NEBENGJEK__WEB__COMMAND_BURST": "100000",
            "NEBENGJEK__LOG__LEVEL": "warning",
        }
        command = [sys.executable, "-m", "nebengjek", "run", "--port", str(port)]
        with child(command, port, ready="/health/ready", env=settings | env) as running:
            yield running


async def login(http: httpx.AsyncClient, number: int, *, driver: bool = False) -> tuple[str, str]:
    """(user id, token) of the person with this number."""
    msisdn = f"+62811{10_000_000 + number}"
    otp = (await http.post("/auth/otp/generate", json={"msisdn": msisdn})).raise_for_status().json()["otp"]
    answer = (await http.post("/auth/otp/verify", json={"msisdn": msisdn, "otp": otp})).raise_for_status().json()
    token = answer["token"]
    if driver:
        form = {
            "full_name": f"Driver {number}",
            "vehicle_type": "car",
            "vehicle_plate": f"B {number % 9999 + 1} {_letters(number)}",
        }
        headers = {"Authorization": f"Bearer {token}"}
        token = (await http.post("/drivers/register", json=form, headers=headers)).raise_for_status().json()["token"]
    return answer["user_id"], token


def _letters(number: int) -> str:
    n = number // 9999
    return chr(65 + n // 26 % 26) + chr(65 + n % 26)
