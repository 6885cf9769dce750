"""What the port raises. Bad input is in here too, and of the branch ``Invalid`` of the error tree."""

from nebengjek.errors import Invalid, NebengJekError, Unavailable


class BusError(NebengJekError):
    """Base of what the port raises."""


class InvalidName(Invalid):
    """A stream or consumer name that is empty, longer than 255, or has one of ``. * > / \\`` or white space."""

    code = "INVALID_NAME"


class InvalidHeader(Invalid):
    """A header whose key is empty or not a token, or whose value has CR, LF, or white space at its ends.

    Or one that would have the server do what this port does not offer (``SERVERS_OWN``).
    """

    code = "INVALID_HEADER"


class MaxPayload(Invalid):
    """Headers and data are more than the server takes."""

    code = "MAX_PAYLOAD"


class NoStream(BusError):
    """No stream takes this subject."""


class ApiError(BusError):
    """The server refused; ``code`` is its error code (10058 …). The text differs between versions: never compare it."""

    def __init__(self, code: int, description: str = "", *, status: int = 400) -> None:
        super().__init__(f"{code} {description}".rstrip())
        self.code = code
        self.status = status
        self.description = description


class PublishRefused(ApiError):
    """A publish that the stream did not take: 10054, 10060, 10070, 10071, 10077."""


class PublishTimeout(Unavailable):
    """No answer in time: the message may be stored or not. Publish again with the same id."""


class NoResponders(Unavailable):
    """Nobody serves this subject."""


class RequestTimeout(Unavailable):
    """Somebody serves this subject, but no answer came in time."""


class AckTimeout(Unavailable):
    """A synchronous ack was not confirmed: the message may come again."""


class AlreadySettled(BusError):
    """This delivery was acked, nak'd or termed before."""


class ConsumerGone(BusError):
    """Somebody iterates over a consumer that is not there, or not of this kind."""


class Disconnected(Unavailable):
    """There is no connection to the server."""


class NotPermitted(BusError):
    """The server does not let this connection's user publish or listen there; the message names user and subject."""
