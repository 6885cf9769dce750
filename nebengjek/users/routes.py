"""Login, the own profile, drivers, and the phone's commands for clients without a socket."""

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType

from nebengjek.contracts.users import VehicleType
from nebengjek.users.accounts import Accounts, DriverRegistration, Login, User
from nebengjek.users.addresses import parse_email
from nebengjek.users.frames import NO_CONTROL, Active, BeaconData, FinderData, LocationData
from nebengjek.users.numbers import parse_msisdn
from nebengjek.users.otp import Otp
from nebengjek.users.service import UsersService
from nebengjek.web import Identity

Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=NO_CONTROL)]
Email = Annotated[str, Meta(max_length=254, extra_json_schema={"format": "email"})]


class OtpRequest(Struct, frozen=True, kw_only=True):
    msisdn: str


class OtpSent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``otp`` only where ``auth.otp_debug`` is on."""

    message: str
    expires_in: int
    otp: str | None = None


class OtpProof(Struct, frozen=True, kw_only=True):
    msisdn: str
    otp: Annotated[str, Meta(min_length=1, max_length=16)]


class RefreshToken(Struct, frozen=True, kw_only=True):
    refresh_token: Annotated[str, Meta(min_length=1, max_length=256)]


class Profile(Struct, frozen=True, kw_only=True):
    """What is not sent stays as it is; null clears."""

    full_name: Name | UnsetType | None = UNSET
    email: Email | UnsetType | None = UNSET


class DriverForm(Struct, frozen=True, kw_only=True):
    full_name: Name
    vehicle_type: VehicleType
    vehicle_plate: Annotated[str, Meta(min_length=1, max_length=16)]


class Accepted(Struct, frozen=True, kw_only=True):
    """The point is on its way; ``location.stored`` or a refusal comes over the socket."""

    accepted: bool


class AuthController(Controller):
    path = "/auth"
    tags = ["auth"]
    otp: Otp
    accounts: Accounts
    debug: bool
    allowed_prefixes: tuple[str, ...]

    @post("/otp/generate", status_code=200, opt={"public": True})
    async def generate(self, request: Request[Any, Any, Any], data: JSONBody[OtpRequest]) -> OtpSent:
        """Send a one-time code to an Indonesian mobile number."""
        msisdn = parse_msisdn(data.msisdn, self.allowed_prefixes)
        address = request.client.host if request.client else "unknown"
        code = await self.otp.generate(msisdn, address)
        return OtpSent(
            message="the code is on its way",
            expires_in=int(self.otp.lifetime),
            otp=code if self.debug else None,
        )

    @post("/otp/verify", status_code=200, opt={"public": True})
    async def verify(self, data: JSONBody[OtpProof]) -> Login:
        """Log in with the code; the first login creates the user as a passenger."""
        msisdn = parse_msisdn(data.msisdn, self.allowed_prefixes)
        await self.otp.verify(msisdn, data.otp)
        return await self.accounts.login(msisdn)

    @post("/refresh", status_code=200, opt={"public": True})
    async def refresh(self, data: JSONBody[RefreshToken]) -> Login:
        """A new pair of tokens; the old refresh token is used up."""
        return await self.accounts.refresh(data.refresh_token)

    @post("/logout", status_code=204, opt={"public": True})
    async def logout(self, data: JSONBody[RefreshToken]) -> None:
        """End the login: its tokens end, its sockets are closed (4401)."""
        await self.accounts.logout(data.refresh_token)


class UsersController(Controller):
    path = ""
    tags = ["users"]
    accounts: Accounts
    service: UsersService

    @get("/users/me")
    async def me(self, user: NamedDependency[Identity]) -> User:
        """Your account; the role is the present one, whatever the token says."""
        return await self.accounts.me(user.user_id)

    @patch("/users/me")
    async def change(self, user: NamedDependency[Identity], data: JSONBody[Profile]) -> User:
        """Change name or e-mail."""
        changes = {key: value for key, value in msgspec.structs.asdict(data).items() if value is not UNSET}
        if changes.get("email") is not None:
            changes["email"] = parse_email(changes["email"])
        return await self.accounts.update(user.user_id, changes)

    @delete("/users/me")
    async def remove(self, user: NamedDependency[Identity]) -> None:
        """Anonymise the account and end all its logins."""
        await self.accounts.delete(user.user_id)

    @get("/users/{user_id:str}")
    async def other(self, user: NamedDependency[Identity], user_id: FromPath[str]) -> User:
        """Yourself, or the other party of a match or ride you share."""
        return await self.accounts.other(user.user_id, user_id)

    @post("/drivers/register", status_code=201)
    async def register(self, user: NamedDependency[Identity], data: JSONBody[DriverForm]) -> DriverRegistration:
        """Become a driver: one vehicle each, its plate is unique."""
        return await self.accounts.register_driver(user, data.full_name, data.vehicle_type, data.vehicle_plate)

    @put("/beacon", opt={"event": "user.beacon"})
    async def beacon(self, user: NamedDependency[Identity], data: JSONBody[BeaconData]) -> Active:
        """Ready for passengers, or no longer."""
        return await self.service.beacon(user.user_id, data)

    @put("/finder", opt={"event": "user.finder"})
    async def finder(self, user: NamedDependency[Identity], data: JSONBody[FinderData]) -> Active:
        """Look for a driver, or no longer."""
        return await self.service.finder(user.user_id, data)

    @post("/location", status_code=202, opt={"event": "location.update"})
    async def location(self, user: NamedDependency[Identity], data: JSONBody[LocationData]) -> Accepted:
        """Say where you are."""
        await self.service.point(user.user_id, data.location, None)
        return Accepted(accepted=True)
