"""nats-py's client, with what it gets wrong put right: a connection that is up is read from, whatever comes in."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

BEHIND = 1024 * 1024
"""Bytes that may wait to be written."""

log = structlog.stdlib.get_logger("nebengjek.bus")


async def _nothing(_: Msg) -> None: ...


class ReadingClient(Client):
    """nats-py's client, except for the following.

    It says nothing of itself in the clear when TLS was wanted: nats-py encrypts when the server says so; whoever
    stands in between could say otherwise, and read the password.

    A flush is one: the server has taken what was sent before it, and we have heard what it said to that.

    It does not become deaf: nats-py's reader ends with the first exception, and nobody reads any more from a
    connection that is up. What others may publish (a subject that is no UTF-8, a header block that is none) is read
    as well as it can be, a PONG for a flush that was given up is nothing, and after any other exception the
    connection is made again.

    It closes: when the connection breaks while nats-py writes what was still to be sent, it leaves the rest open.
    """

    def __init__(self, *, tls_only: bool) -> None:
        super().__init__()
        self._tls_only = tls_only
        self._answers = 0
        self._answered: Callable[[Msg], None] = lambda _: None
        self.broken_by: Exception | None = None
        """Why the last connection is no more, as far as we know; nats-py forgets it."""

    def _connect_command(self) -> bytes:
        if self._tls_only and not self._server_info.get("tls_required") and not self._is_web_socket():
            raise nats_errors.Error("the server offers no TLS")
        command: bytes = super()._connect_command()
        return command

    async def _process_op_err(self, e: Exception) -> None:
        self.broken_by = e
        await super()._process_op_err(e)

    def write(self, subject: str, data: bytes, reply: str, headers: Mapping[str, str]) -> bool:
        """Publish in this turn of the loop, in half the time that nats-py takes to check what was checked already.

        False when the connection is not up, or so far behind that whoever publishes had better wait.
        """
        queue, flusher = self._flush_queue, self._flusher_task
        if not self.is_connected or self.is_draining or self._pending_data_size > BEHIND:
            return False
        if queue is None or flusher is None or flusher.done():
            return False
        lines = "".join([f"{key}: {value}\r\n" for key, value in headers.items()])
        block = f"NATS/1.0\r\n{lines}\r\n".encode() if lines else b""
        sizes = f"{len(block)} {len(block) + len(data)}" if block else f"{len(data)}"
        verb = "HPUB" if block else "PUB"
        command = b"".join((f"{verb} {subject} {reply} {sizes}\r\n".encode(), block, data, b"\r\n"))
        self._pending.append(command)
        self._pending_data_size += len(command)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(data)
        if queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())
        return True

    async def take_answers(self, subject: str, answered: Callable[[Msg], None]) -> None:
        """Call ``answered`` when a message on ``subject`` is read, in the same turn of the loop."""
        subscription = await self.subscribe(subject, cb=_nothing)
        self._answers, self._answered = subscription._id, answered

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid != self._answers:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        message = self._build_message(sid, subject, reply, data, await self._process_headers(headers))
        try:
            self._answered(message)
        except Exception as error:
            # Somebody else's nonsense must not end the reader.
            await self._error_cb(error)

    def hold_off(self) -> None:
        """Pause before the next try, once: nats-py does so where the last one was not long ago."""
        for server in self._server_pool:
            server.last_attempt = time.monotonic()

    def abort(self) -> None:
        """Let go of the connection, with all that was written and not sent."""
        for name in ("_io_writer", "_bare_io_writer"):
            writer: asyncio.StreamWriter | None = getattr(self._transport, name, None)
            if writer is not None:
                writer.transport.abort()

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Any) -> None:
        self.abort()
        await super()._connect_to_server(s)

    async def flush(self, timeout: int = 10) -> None:
        # nats-py writes the ping at once and what was sent before it later: only a second ping comes behind it. When a
        # subscription drains, what the server sent until it took the UNSUB would be lost.
        await super().flush(timeout)
        await super().flush(timeout)

    def _is_web_socket(self) -> bool:
        server = self._current_server
        return server is not None and server.uri.scheme in ("ws", "wss")

    async def _read_loop(self) -> None:
        await super()._read_loop()
        task = asyncio.current_task()
        if self.is_connected and not self.is_draining and task is not None and not task.cancelling():
            log.error("nats.not_read", error="the reader ended; the connection is made again")
            await self._process_op_err(nats_errors.ProtocolError())

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        try:
            await super()._close(status, do_cbs)
        except ConnectionError:
            # Nothing is left to be written now; a client that says it is closed would do nothing.
            self._status = Client.DISCONNECTED
            await super()._close(status, do_cbs)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError):
            return None
        return found

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        if not subject.isascii():
            subject = subject.decode(errors="replace").encode()
        return super()._build_message(sid, subject, reply, data, headers)
