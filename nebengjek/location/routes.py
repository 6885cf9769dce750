"""Phones that an operator should look at."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from litestar import Router, get
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from nebengjek.database import Database
from nebengjek.location.records import flagged

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Any]


class Flag(Struct, frozen=True, kw_only=True):
    """``kind``: ``teleport``; ``count``: how many implausible points, in rows of three."""

    user_id: str
    kind: str
    count: int
    last_at: datetime


class Flags(Struct, frozen=True, kw_only=True):
    items: list[Flag]


def admin_routes(database: Database, guard: Guard) -> Router:
    @get("/flags", summary="Phones with implausible points, the latest first")
    async def flags() -> Flags:
        async with database.read() as tx:
            rows = await flagged(tx)
        return Flags(items=[Flag(**row._mapping) for row in rows])

    return Router("/admin", route_handlers=[flags], guards=[guard], tags=["admin"])
