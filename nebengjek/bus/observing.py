"""What the bus counts and whom it tells; the application hands in Prometheus, tests nothing."""

from contextlib import AbstractContextManager
from typing import Protocol

from nebengjek.bus.tracing import Trace


class Observer(Protocol):
    """Called on the hot path, several times a message: cheap, and never failing."""

    def published(self, stream: str, event_type: str, n: int = 1) -> None: ...

    def publish_failed(self, code: str) -> None: ...

    def delivered(self, stream: str, consumer: str, n: int, redelivered: int) -> None: ...

    def settled(self, consumer: str, outcome: str, n: int = 1) -> None:
        """``outcome``: acked, naked, termed."""

    def handled(self, consumer: str, seconds: float) -> None: ...

    def dead_letter(self, consumer: str, reason: str) -> None: ...


class Spans(Protocol):
    """Where spans go. The bus makes its trace context with or without it."""

    def span(self, name: str, trace: Trace, **attributes: str | int) -> AbstractContextManager[Trace]:
        """A span below ``trace`` for as long as the block runs; inside, the trace continues from the span.

        An exception that leaves the block is noted on the span.
        """
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class Silent:
    """An observer that counts nothing."""

    def published(self, stream: str, event_type: str, n: int = 1) -> None: ...

    def publish_failed(self, code: str) -> None: ...

    def delivered(self, stream: str, consumer: str, n: int, redelivered: int) -> None: ...

    def settled(self, consumer: str, outcome: str, n: int = 1) -> None: ...

    def handled(self, consumer: str, seconds: float) -> None: ...

    def dead_letter(self, consumer: str, reason: str) -> None: ...
