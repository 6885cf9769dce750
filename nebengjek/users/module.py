"""users: accounts and phones; says who is there, tells the phones what the others say."""

from typing import Any

from nebengjek.bus.messaging import MessageBus
from nebengjek.contracts.location import LocationRefused, LocationStored, LocationUpdate
from nebengjek.contracts.match import (
    AcceptMatch,
    AcquaintanceOf,
    MatchAccepted,
    MatchesOf,
    MatchFound,
    MatchRejected,
    MatchUnavailable,
    RejectMatch,
)
from nebengjek.contracts.rides import (
    ArriveRide,
    CancelRide,
    PayRide,
    RideArrived,
    RideCancelled,
    RideCompleted,
    RideOfUser,
    RidePayment,
    RidePickup,
    RideProgress,
    RideStarted,
    StartRide,
)
from nebengjek.contracts.users import (
    AccountsAfter,
    AccountsOf,
    UserAvatarUploaded,
    UserBeacon,
    UserCreated,
    UserDriverRegistered,
    UserFinder,
    UserPresence,
    UserSessionEnded,
    UserUpdated,
)
from nebengjek.module import Module, answer, every, on, on_batch, watch
from nebengjek.realtime.delivery import Delivery
from nebengjek.users.accounts import Accounts
from nebengjek.users.otp import Otp
from nebengjek.users.phones import Phones
from nebengjek.users.routes import AuthController, UsersController
from nebengjek.users.service import UsersService
from nebengjek.users.websocket import PhoneSocket


def users(
    bus: MessageBus,
    accounts: Accounts,
    otp: Otp,
    service: UsersService,
    socket: PhoneSocket,
    delivery: Delivery,
    *,
    otp_debug: bool,
    allowed_prefixes: tuple[str, ...],
) -> Module:
    phones = Phones(delivery, service)

    async def session_ended(event: UserSessionEnded) -> None:
        delivery.close_session(event.user_id, event.session_id)

    auth: dict[str, Any] = {"otp": otp, "accounts": accounts, "debug": otp_debug, "allowed_prefixes": allowed_prefixes}

    async def start() -> None:
        await delivery.start()
        await accounts.restore()

    return Module(
        name="users",
        routes=[
            type("Auth", (AuthController,), auth),
            type("Users", (UsersController,), {"accounts": accounts, "service": service}),
            socket.route(),
        ],
        says=[
            UserCreated,
            UserUpdated,
            UserDriverRegistered,
            UserBeacon,
            UserFinder,
            UserPresence,
            UserSessionEnded,
            LocationUpdate,  # a phone's point comes in here
        ],
        hears=[
            on_batch(LocationStored, phones.stored),
            on_batch(LocationRefused, phones.refused),
            on(MatchFound, phones.match_found),
            on(MatchAccepted, phones.match_accepted),
            on(MatchRejected, phones.match_rejected),
            on(MatchUnavailable, phones.match_unavailable),
            on(RidePickup, phones.ride),
            on(RideStarted, phones.ride),
            on(RideProgress, phones.ride),
            on(RideArrived, phones.ride),
            on(RidePayment, phones.ride_payment),
            on(RideCompleted, phones.ride_completed),
            on(RideCancelled, phones.ride_cancelled),
            on(UserAvatarUploaded, accounts.avatar),
        ],
        watches=[watch(UserSessionEnded, session_ended)],
        asks=[
            MatchesOf,
            AcquaintanceOf,
            AcceptMatch,
            RejectMatch,
            RideOfUser,
            StartRide,
            ArriveRide,
            PayRide,
            CancelRide,
        ],
        answers=[answer(AccountsAfter, accounts.after), answer(AccountsOf, accounts.of)],
        sweeps=[
            every(2.0, delivery.beat),
            every(5.0, delivery.look_for_mail),
            every(1.0, service.sweep_presence),
            every(1.0, delivery.tend),
            every(2.0, accounts.restore),
            every(3600.0, accounts.forget_old),
        ],
        start=start,
    )
