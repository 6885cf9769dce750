"""Proposals and their answers, for clients without a socket."""

from typing import Annotated, Literal

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct

from nebengjek.contracts.match import AcceptMatch, Match, MatchesOf, MatchState, MatchStatus, RejectMatch
from nebengjek.match.service import MatchService
from nebengjek.web import Identity


class Rejection(Struct, frozen=True, kw_only=True):
    reason: Annotated[str, Meta(max_length=200)] | None = None


class Matches(Struct, frozen=True, kw_only=True):
    items: list[Match]


class MatchController(Controller):
    path = "/matches"
    tags = ["matches"]
    service: MatchService

    @get("/")
    async def mine(
        self, user: NamedDependency[Identity], status: FromQuery[MatchState | Literal["OPEN"] | None] = None
    ) -> Matches:
        """Your matches, newest first, at most 100; ``status=OPEN`` are the proposals to answer."""
        if status == "OPEN":
            return Matches(items=(await self.service.of_user(MatchesOf(user_id=user.user_id))).proposals)
        return Matches(items=await self.service.matches_of(user.user_id, status))

    @get("/{match_id:str}")
    async def one(self, user: NamedDependency[Identity], match_id: FromPath[str]) -> Match:
        """One of your matches."""
        return await self.service.match(user.user_id, match_id)

    @post("/{match_id:str}/accept", status_code=200, opt={"event": "match.accept"})
    async def accept(self, user: NamedDependency[Identity], match_id: FromPath[str]) -> MatchStatus:
        """Accept a proposal; when both have, the ride begins."""
        return await self.service.accept(AcceptMatch(match_id=match_id, user_id=user.user_id))

    @post("/{match_id:str}/reject", status_code=200, opt={"event": "match.reject"})
    async def reject(
        self, user: NamedDependency[Identity], match_id: FromPath[str], data: JSONBody[Rejection | None] = None
    ) -> MatchStatus:
        """Reject a proposal."""
        reason = data.reason if data else None
        return await self.service.reject(RejectMatch(match_id=match_id, user_id=user.user_id, reason=reason))
