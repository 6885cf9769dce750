"""What all routes share: who is asking, failures as ``application/problem+json`` (RFC 9457), health."""

import hmac
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from litestar import HttpMethod, Litestar, MediaType, Request, Response, route
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, ValidationException, WebSocketException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.types import Scope

from nebengjek.bus.tracing import enter, new_trace
from nebengjek.errors import Invalid, NebengJekError, RateLimited, Rejected, Unauthenticated, Unavailable
from nebengjek.tokens import Identity

__all__ = [
    "ADMIN_PATH",
    "PROBLEM_TYPE",
    "Check",
    "HealthReport",
    "Identity",
    "JsonRequest",
    "MsgspecLitestar",
    "Problem",
    "admin_guard",
    "begin_trace",
    "exception_handlers",
    "health_routes",
    "log_fault",
    "user_guard",
]

log = structlog.stdlib.get_logger("nebengjek.web")


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457; ``code`` is stable, ``detail`` is for people."""

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"
    errors: list[dict[str, str]] | None = None


ADMIN_PATH = "/admin"
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
    500: "Internal error",
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


def _rejected(request: Request[Any, Any, Any], error: NebengJekError) -> Response[Problem]:
    if isinstance(error, RateLimited):
        seconds = max(1, math.ceil(error.retry_after))
        return _problem(429, error.code, error.message, headers={"Retry-After": str(seconds)})
    if isinstance(error, Rejected):
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return _problem(error.status, error.code, error.message, headers=headers)
    if isinstance(error, Unavailable):
        return _problem(503, error.code, error.message, headers={"Retry-After": "1"})
    return _failed(request, error)


def _invalid(_: Request[Any, Any, Any], error: ValidationException) -> Response[Problem]:
    extra = error.extra if isinstance(error.extra, list) else []
    errors = [
        {"field": str(item.get("key", "body")), "message": str(item.get("message", ""))}
        for item in extra
        if isinstance(item, dict)
    ]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors) or error.detail
    return _problem(400, "INVALID", detail, errors=errors or None)


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    if error.status_code >= 500:
        return _failed(request, error)
    return _problem(error.status_code, _CODES.get(error.status_code, "ERROR"), error.detail, headers=error.headers)


def _failed(_: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    # What it was is for the log (``log_fault``): the message of a fault may quote anything.
    return _problem(500, "INTERNAL", "something went wrong here; it has been noted")


exception_handlers: dict[Any, Any] = {
    NebengJekError: _rejected,
    ValidationException: _invalid,
    HTTPException: _http,
    Exception: _failed,
}
"""For ``Litestar(exception_handlers=...)``; what is in no branch of the error tree is a 500."""


async def log_fault(error: Exception, scope: Scope) -> None:
    """For ``Litestar(after_exception=...)``: log what no caller brought about, of requests and sockets."""
    if isinstance(error, Rejected | Unavailable | WebSocketException):
        return
    if isinstance(error, HTTPException) and error.status_code < 500:
        return
    log.error("web.failed", method=scope.get("method"), path=scope.get("path_template"), exc_info=error)


_JSON = re.compile(r"\s*(application/([\w.-]+\+)?json|application/x-www-form-urlencoded)?\s*(;.*)?", re.IGNORECASE)
"""JSON, nothing said, or what ``curl -d`` says of any body unless it is told otherwise."""


class MsgspecLitestar(Litestar):
    """A Litestar for routes whose values are all msgspec's."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        # Litestar imports pydantic wherever it is installed, as by the clients of language models: a fifth of the CPU
        # time of our start, for nothing that we use.
        return [*plugins, MsgspecDIPlugin()]


class JsonRequest(Request[Any, Any, Any]):
    """For ``Litestar(request_class=...)``: a body is JSON, whoever sends another kind is told so."""

    async def json(self) -> Any:
        """The decoded body, null when there is none. Raises HTTPException (415), Invalid."""
        kind = self.headers.get("content-type", "")
        if not _JSON.fullmatch(kind) and await self.body():
            raise HTTPException(status_code=415, detail="the body is of another kind: expected application/json")
        try:
            return await super().json()
        except (UnicodeDecodeError, RecursionError) as error:
            raise Invalid("the body is not UTF-8, or nested too deep") from error


async def begin_trace(request: Request[Any, Any, Any]) -> None:
    """For ``Litestar(before_request=...)``: what the request causes continues the caller's trace, or begins one."""
    # Each request is served in a task of its own: nobody inherits it.
    enter(new_trace(traceparent=request.headers.get("traceparent")))


def user_guard(
    authenticate: Callable[[str], Awaitable[Identity]],
    count: Callable[[str, str], Awaitable[None]],
) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]:
    """A Litestar guard for the whole application: who is asking is known before anything else is looked at.

    ``authenticate``: the identity of a token, or Unauthenticated; it becomes ``request.user``. ``count``: told the
    user and the event whose command a route is (``opt={"event": ...}``), or RateLimited. Left out are routes
    with ``opt={"public": True}``, operators' routes (below ``/admin``, which have ``admin_guard``) and sockets, which
    answer with a close code.
    """

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        scope = connection.scope
        if handler.opt.get("public") or scope["path_template"].startswith(ADMIN_PATH):
            return
        if scope["type"] != ScopeType.HTTP or scope["method"] == "OPTIONS":
            return  # a browser asks without a token what it may ask
        header = connection.headers.get("authorization", "")
        if header[:7].lower() != "bearer ":
            raise Unauthenticated("a bearer token is needed")
        user = scope["user"] = await authenticate(header[7:].strip())
        if (event := handler.opt.get("event")) is not None:
            await count(user.user_id, event)

    return guard


def admin_guard(api_key: str) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]:
    """A Litestar guard for operators' routes: ``X-API-Key``, compared in constant time."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        given = connection.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), api_key.encode()):
            raise Unauthenticated("X-API-Key is missing or wrong")

    return guard


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part of the process: ``up`` or why not. ``alarm``: somebody should look, but it serves as well as others."""

    name: str
    up: bool
    where: str
    reason: str | None = None
    alarm: bool = False


class Readiness(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``down``: the parts that are not up, and why; ``alarms``: what somebody should look at, where there is any."""

    status: str
    pod_id: str
    down: dict[str, str | None]
    alarms: dict[str, str | None] = {}


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """``status``: ``up``, ``degraded`` (nothing but alarms) or ``down``."""

    status: str
    pod_id: str
    checks: list[Check]
    details: dict[str, Any]


Examine = Callable[[], Awaitable[HealthReport]]
_LOOK = [HttpMethod.GET, HttpMethod.HEAD]
"""Some balancers ask for the status only."""


def health_routes(pod_id: str, examine: Examine) -> list[Any]:
    """``/health/live`` answers while the process runs; the others are 503 when a part is down."""

    def answer(report: HealthReport, body: Any) -> Response[Any]:
        return Response(body, status_code=503 if report.status == "down" else 200, media_type=MediaType.JSON)

    @route("/health/live", http_method=_LOOK, opt={"public": True}, tags=["health"])
    async def live() -> dict[str, str]:
        """The process runs."""
        return {"status": "up", "pod_id": pod_id}

    not_ready = {503: ResponseSpec(Readiness, description="Not ready: do not send requests here.")}
    not_up = {503: ResponseSpec(HealthReport, description="Something is down.")}

    @route(["/health", "/health/ready"], http_method=_LOOK, opt={"public": True}, tags=["health"], responses=not_ready)
    async def ready() -> Response[Readiness]:
        """Streams exist, own consumers are attached and moving, stores answer."""
        report = await examine()
        down = {check.name: check.reason for check in report.checks if not check.up and not check.alarm}
        alarms = {check.name: check.reason for check in report.checks if check.alarm}
        return answer(report, Readiness(status=report.status, pod_id=pod_id, down=down, alarms=alarms))

    @route("/health/detailed", http_method=_LOOK, opt={"public": True}, tags=["health"], responses=not_up)
    async def detailed() -> Response[HealthReport]:
        """Every part, every consumer."""
        report = await examine()
        return answer(report, report)

    return [live, ready, detailed]
