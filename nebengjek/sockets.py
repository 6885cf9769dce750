"""How uvicorn holds a phone's socket: pings that may be missed twice, small buffers, an end that waits for nobody.

uvicorn's own WebSocket waits for a phone that does not read, in a send, in a close and at its shutdown: the socket of a
phone in a tunnel would stay for as long as the network keeps it. What is changed here is in docs/decisions.
"""

import asyncio
import socket
from asyncio.transports import BaseTransport
from collections.abc import Iterator, Sequence
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.protocol import State
from websockets.typing import ExtensionParameter

MISSED_PINGS = 2
"""Pings in a row without an answer; when the next one is due the phone is dead."""
COMPRESS_FROM = 512
"""Bytes of a frame: a smaller one hardly shrinks, a larger one to a half or a third, for 15 to 25 us."""
WRITE_BUFFER = 32 * 1024
"""Bytes of a phone that this process holds; above them it is not written to any more, and the newest waits."""
NOT_SENT = 16 * 1024
"""Bytes that the kernel takes before it has sent them. Without a limit it takes megabytes, all of them older than
what is shown next."""

READ_AHEAD = 4
"""Frames of a phone that may wait to be handled; then nothing more is read of it."""
LINGER = 5.0
"""Seconds for a phone to take the close frame and what stands before it; then its socket is cut off."""


class _Inbox:
    """What one reader has not taken yet: an asyncio.Queue of 10,000 sockets would be 30 MB of empty deques."""

    __slots__ = ("_items", "_reader")

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._reader: asyncio.Future[None] | None = None

    def put_nowait(self, item: Any) -> None:
        self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> Any:
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._items.pop(0)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


class _Sent:
    """What is awaited when there is nothing to wait for."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


_SENT = _Sent()
_HEADS = [bytes([0x81, size]) for size in range(126)]


class _Deflate(PerMessageDeflate):
    def encode(self, frame: Frame) -> Frame:
        return frame if len(frame.data) < COMPRESS_FROM else super().encode(frame)


class _Factory(ServerPerMessageDeflateFactory):
    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        said, agreed = super().process_request_params(params, accepted_extensions)
        return said, _Deflate(
            agreed.remote_no_context_takeover,
            agreed.local_no_context_takeover,
            agreed.remote_max_window_bits,
            agreed.local_max_window_bits,
            agreed.compress_settings,
        )


# Without a context that outlives the frame: with one each socket would hold 51 KB of zlib's.
_EXTENSIONS = [
    _Factory(
        server_no_context_takeover=True,
        client_no_context_takeover=True,
        server_max_window_bits=12,
        client_max_window_bits=12,
        compress_settings={"memLevel": 5},
    )
]


class PhoneProtocol(WebSocketsSansIOProtocol):
    """For ``uvicorn.Config(ws=...)``, with ``ws_ping_timeout=None``: pings are counted here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.available_extensions = _EXTENSIONS
        self.queue = _Inbox()  # type: ignore[assignment]
        self._unanswered = 0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if (option := getattr(socket, "TCP_NOTSENT_LOWAT", None)) is not None:
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, NOT_SENT)

    # -- pings

    def send_keepalive_ping(self) -> None:
        if self._unanswered == MISSED_PINGS:
            self.keepalive_timeout()
            return
        self._unanswered += 1
        super().send_keepalive_ping()

    def handle_pong(self, event: Frame) -> None:
        self._unanswered = 0
        super().handle_pong(event)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._cut_off_later()

    # -- frames

    def send_receive_event_to_app(self) -> None:
        # As uvicorn does it, except that it stops reading when some frames wait and not at each of them: to stop and
        # to start again are two calls into the kernel.
        paused, self.read_paused = self.read_paused, True
        super().send_receive_event_to_app()
        self.read_paused = paused or self.queue.qsize() >= READ_AHEAD
        if self.read_paused and not paused:
            self.transport.pause_reading()

    def send(self, message: Any) -> Any:
        kind = message["type"]
        if kind == "websocket.send" and self.writable.is_set() and self.conn.state is State.OPEN:
            data = message["text"].encode()
            if (size := len(data)) < COMPRESS_FROM:
                # A small text frame is its length and itself (RFC 6455, 5.2): nothing to wait for, nothing to compress.
                head = _HEADS[size] if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")
                self.transport.write(head + data)
                return _SENT
        if kind == "websocket.close" and self.handshake_complete:
            return self._close(message)
        return super().send(message)

    # -- the end

    async def _close(self, message: Any) -> None:
        # The phone is not waited for: the close frame stands behind what it has not read.
        self.writable.set()
        await super().send(message)
        if self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(LINGER, self.transport.abort)

    def shutdown(self) -> None:
        super().shutdown()
        self._cut_off_later()

    def _cut_off_later(self) -> None:
        """A transport that is told to close stays until the phone has taken everything: for ever, if it never does."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(LINGER, self.transport.abort)
