"""Profiles over HTTP: one's own, one's picture, and the operators' search."""

from collections.abc import Callable
from typing import Annotated, Any

from litestar import Controller, HttpMethod, Request, Response, delete, get, post, put, route
from litestar.connection import ASGIConnection
from litestar.datastructures import UploadFile
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, MultipartBody, QueryParameter
from msgspec import Struct

from nebengjek.errors import Invalid, TooLarge
from nebengjek.web import Identity
from nebengjek_plugins.profiles.gallery import ORIGINAL, Gallery, Uploaded
from nebengjek_plugins.profiles.search import FoundUsers, Rebuilt, Search
from nebengjek_plugins.profiles.service import Profile, Profiles, Signups

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Any]

MAX_BYTES = 5 * 1024 * 1024
_AROUND = 16 * 1024
"""What a form may take beside the file."""
_FOR_EVER = "public, max-age=31536000, immutable"
_FOR_NOW = "public, max-age=2"
_READ = [HttpMethod.GET, HttpMethod.HEAD]
_PICTURE = {200: ResponseSpec(bytes, media_type="image/webp", description="The picture.")}


class SignupsByDay(Struct, frozen=True, kw_only=True):
    """Days in Jakarta, newest first; days on which nobody came are left out."""

    days: dict[str, int]


class ProfilesController(Controller):
    path = ""
    tags = ["profiles"]
    profiles: Profiles
    gallery: Gallery

    @get("/users/me/profile")
    async def profile(self, user: NamedDependency[Identity]) -> Profile:
        """Your profile. It follows your account within the time an event takes."""
        return await self.profiles.read(user.user_id)

    @put("/users/me/avatar", status_code=202, request_max_body_size=MAX_BYTES + _AROUND)
    async def upload(self, user: NamedDependency[Identity], data: MultipartBody[dict[str, UploadFile]]) -> Uploaded:
        """Your picture, as the one file of a form: JPEG, PNG or WebP, at most 5 MiB."""
        if len(data) != 1:
            raise Invalid("a form with one file is expected")
        (file,) = data.values()
        content = await file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise TooLarge(f"a picture may have {MAX_BYTES} bytes")
        return await self.gallery.upload(user.user_id, content)

    @delete("/users/me/avatar")
    async def remove(self, user: NamedDependency[Identity]) -> None:
        """Show no picture any more."""
        await self.gallery.remove(user.user_id)

    @route("/avatars/{token:str}", http_method=_READ, status_code=200, opt={"public": True}, responses=_PICTURE)
    async def picture(self, request: Request[Any, Any, Any], token: FromPath[str]) -> Response[bytes]:
        """A picture; one that was replaced leads to its successor."""
        return await self._picture(request, token, ORIGINAL)

    @route(
        "/avatars/{token:str}/{size:str}", http_method=_READ, status_code=200, opt={"public": True}, responses=_PICTURE
    )
    async def thumbnail(
        self, request: Request[Any, Any, Any], token: FromPath[str], size: FromPath[str]
    ) -> Response[bytes]:
        """A square of 64, 128 or 512 pixels."""
        return await self._picture(request, token, size)

    async def _picture(self, request: Request[Any, Any, Any], token: str, size: str) -> Response[bytes]:
        shown = await self.gallery.show(token, size)
        if shown.elsewhere is not None:
            return Response(b"", status_code=307, headers={"Location": shown.elsewhere, "Cache-Control": _FOR_NOW})
        headers = {
            "ETag": shown.etag,
            "Cache-Control": _FOR_EVER if shown.final else _FOR_NOW,
            "X-Content-Type-Options": "nosniff",
        }
        known = request.headers.get("if-none-match", "")
        if known == "*" or shown.etag in known:
            return Response(b"", status_code=304, headers=headers)
        return Response(shown.data, media_type="image/webp", headers=headers)


class OperatorsController(Controller):
    path = "/admin"
    tags = ["operators"]
    search: Search
    signups: Signups

    @get("/users")
    async def find(
        self,
        q: Annotated[str, QueryParameter(min_length=1, max_length=100)],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: FromQuery[str | None] = None,
    ) -> FoundUsers:
        """Users by name, by the end of their number, by plate: each word must begin one of theirs."""
        return await self.search.find(q, cursor=cursor, limit=limit)

    @post("/users/search/rebuild", status_code=200)
    async def rebuild(
        self,
        after: FromQuery[str] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 500,
    ) -> Rebuilt:
        """One step of building the search anew; go on with ``next`` until it is null."""
        return await self.search.rebuild(after, limit)

    @get("/signups")
    async def days(self, days: Annotated[int, QueryParameter(ge=1, le=366)] = 30) -> SignupsByDay:
        """How many signed up on which day."""
        return SignupsByDay(days=await self.signups.by_day(days))
