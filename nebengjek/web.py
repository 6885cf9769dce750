"""What all routes share: who is asking, failures as ``application/problem+json`` (RFC 9457), health."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar import MediaType, Request, Response, get
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import BaseRouteHandler

from nebengjek.bus.tracing import enter, new_trace
from nebengjek.errors import NebengJekError, RateLimited, Rejected, Unauthenticated, Unavailable
from nebengjek.tokens import Identity

__all__ = [
    "PROBLEM_TYPE",
    "Check",
    "HealthReport",
    "Identity",
    "Problem",
    "admin_guard",
    "begin_trace",
    "exception_handlers",
    "health_routes",
]


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457; ``code`` is stable, ``detail`` is for people."""

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"
    errors: list[dict[str, str]] | None = None


PROBLEM_TYPE = "application/problem+json"
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
_CODES = {
    400: "INVALID",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
}


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
        media_type=PROBLEM_TYPE,
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


async def begin_trace(request: Request[Any, Any, Any]) -> None:
    """For ``Litestar(before_request=...)``: what the request causes continues the caller's trace, or begins one."""
    # Each request is served in a task of its own: nobody inherits it.
    enter(new_trace(traceparent=request.headers.get("traceparent")))


def admin_guard(api_key: str) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]:
    """A Litestar guard for operators' routes: ``X-API-Key``, compared in constant time."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        given = connection.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), api_key.encode()):
            raise Unauthenticated("X-API-Key is missing or wrong")

    return guard


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part of the process: ``up`` or why not."""

    name: str
    up: bool
    where: str
    reason: str | None = None


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    pod_id: str
    checks: list[Check]
    details: dict[str, Any]


Examine = Callable[[], Awaitable[HealthReport]]


def health_routes(pod_id: str, examine: Examine) -> list[Any]:
    """``/health/live`` answers while the process runs; the others are 503 unless every check is up."""

    def answer(report: HealthReport, body: Any) -> Response[Any]:
        return Response(body, status_code=200 if report.status == "up" else 503, media_type=MediaType.JSON)

    @get("/health/live", opt={"public": True}, tags=["health"])
    async def live() -> dict[str, str]:
        """The process runs."""
        return {"status": "up", "pod_id": pod_id}

    @get(["/health", "/health/ready"], opt={"public": True}, tags=["health"])
    async def ready() -> Response[dict[str, Any]]:
        """Streams exist, own consumers are attached and moving, stores answer."""
        report = await examine()
        down = {check.name: check.reason for check in report.checks if not check.up}
        return answer(report, {"status": report.status, "pod_id": pod_id, "down": down})

    @get("/health/detailed", opt={"public": True}, tags=["health"])
    async def detailed() -> Response[HealthReport]:
        """Every part, every consumer."""
        report = await examine()
        return answer(report, report)

    return [live, ready, detailed]
