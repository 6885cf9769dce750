"""The error tree: what may go wrong, and how a caller sees it.

::

    NebengJekError
     ├── Rejected            somebody asked for what cannot be; nothing happened. ``code`` is stable
     │    ├── Invalid          400  the input itself is wrong
     │    ├── Unauthenticated  401  who is asking is not known
     │    ├── Forbidden        403  known, but not allowed
     │    ├── NotFound         404  no such thing (or not yet)
     │    ├── Conflict         409  not in the present state; it has been decided otherwise
     │    ├── TooLarge         413  more bytes than are taken
     │    └── RateLimited      429  too often; ``retry_after`` seconds
     ├── Unavailable         503  a dependency does not answer; the same request may pass later
     └── Misconfigured       the process refuses to start; names the key and what was expected
"""

from typing import ClassVar


class NebengJekError(Exception):
    """Base of all errors that are raised on purpose."""


class Rejected(NebengJekError):
    """A request that was refused; ``code`` is what a program may rely on, the message is for people."""

    status: ClassVar[int] = 400
    code: str = "REJECTED"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class Invalid(Rejected):
    status = 400
    code = "INVALID"


class Unauthenticated(Rejected):
    status = 401
    code = "UNAUTHENTICATED"


class Forbidden(Rejected):
    status = 403
    code = "FORBIDDEN"


class NotFound(Rejected):
    status = 404
    code = "NOT_FOUND"


class Conflict(Rejected):
    status = 409
    code = "CONFLICT"


class TooLarge(Rejected):
    status = 413
    code = "TOO_LARGE"


class RateLimited(Rejected):
    """Too often. ``retry_after``: seconds until the next try may pass."""

    status = 429
    code = "RATE_LIMITED"

    def __init__(self, message: str, *, retry_after: float, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class Unavailable(NebengJekError):
    """``dependency`` (``database``, ``redis``, ``bus``, ``gateway`` …) does not answer."""

    status: ClassVar[int] = 503
    code: str = "UNAVAILABLE"

    def __init__(self, dependency: str, message: str | None = None) -> None:
        self.message = message or f"{dependency} does not answer, try again"
        super().__init__(self.message)
        self.dependency = dependency


class Misconfigured(NebengJekError):
    """A setting that no process should start with; the message names the key and what was expected."""


_BY_KIND: dict[str, type[Rejected]] = {
    kind.__name__: kind for kind in (Invalid, Unauthenticated, Forbidden, NotFound, Conflict, TooLarge)
}


def restore(kind: str, code: str, message: str) -> NebengJekError:
    """The error that another process raised, from what it said on the wire (see ``describe``).

    An unknown kind becomes a plain ``Rejected`` with the same code.
    """
    if kind == "Unavailable":
        return Unavailable(code, message)
    if kind == "RateLimited":
        return RateLimited(message, retry_after=1.0, code=code)
    return _BY_KIND.get(kind, Rejected)(message, code=code)


def describe(error: Rejected | Unavailable) -> tuple[str, str, str]:
    """``(kind, code, message)`` of an error, enough for ``restore`` on the other side."""
    if isinstance(error, Unavailable):
        return "Unavailable", error.dependency, error.message
    kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _BY_KIND), "Rejected")
    if isinstance(error, RateLimited):
        kind = "RateLimited"
    return kind, error.code, error.message
