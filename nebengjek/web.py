"""What all routes share: who is asking, and failures as ``application/problem+json`` (RFC 9457)."""

from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from nebengjek.errors import NebengJekError, NotFound, RateLimited, Rejected, Unavailable
from nebengjek.tokens import Identity

__all__ = ["Identity", "Problem", "exception_handlers", "own"]


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457; ``code`` is stable, ``detail`` is for people."""

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"
    errors: list[dict[str, str]] | None = None


_TITLES = {
    400: "Invalid",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported media type",
    429: "Too many requests",
    503: "Unavailable",
}
_CODES = {400: "INVALID", 401: "UNAUTHENTICATED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


def _problem(
    status: int,
    code: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> Response[Problem]:
    return Response(
        Problem(title=_TITLES.get(status, "Error"), status=status, code=code, detail=detail, errors=errors),
        status_code=status,
        media_type="application/problem+json",
        headers=headers,
    )


def _rejected(_: Request[Any, Any, Any], error: NebengJekError) -> Response[Problem]:
    if isinstance(error, RateLimited):
        return _problem(429, error.code, error.message, headers={"Retry-After": str(max(1, round(error.retry_after)))})
    if isinstance(error, Rejected):
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return _problem(error.status, error.code, error.message, headers=headers)
    if isinstance(error, Unavailable):
        return _problem(503, error.code, error.message, headers={"Retry-After": "1"})
    raise error


def _invalid(_: Request[Any, Any, Any], error: ValidationException) -> Response[Problem]:
    extra = error.extra if isinstance(error.extra, list) else []
    errors = [
        {"field": str(item.get("key", "body")), "message": str(item.get("message", ""))}
        for item in extra
        if isinstance(item, dict)
    ]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors) or error.detail
    return _problem(400, "INVALID", detail, errors=errors or None)


def _http(_: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    return _problem(error.status_code, _CODES.get(error.status_code, "ERROR"), error.detail, headers=error.headers)


exception_handlers: dict[Any, Any] = {
    NebengJekError: _rejected,
    ValidationException: _invalid,
    HTTPException: _http,
}
"""For ``Litestar(exception_handlers=...)``; what is in no branch of the error tree stays a 500 and is logged."""


def own(found: bool, what: str, identifier: str) -> None:
    """Raises NotFound unless ``found``: somebody else's things are not there for him."""
    if not found:
        raise NotFound(f"there is no {what} {identifier[:64]}")
