"""The table of contents of profiles: one module for each effect, so that none of them delays another."""

from collections.abc import Sequence
from typing import Any

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.users import (
    AccountsAfter,
    UserAvatarUploaded,
    UserCreated,
    UserDriverRegistered,
    UserUpdated,
)
from nebengjek.database import Database
from nebengjek.faststate import FastState
from nebengjek.module import Module, every, on
from nebengjek_plugins.profiles.cache import Cache
from nebengjek_plugins.profiles.files import Files
from nebengjek_plugins.profiles.gallery import Gallery
from nebengjek_plugins.profiles.migrations import HISTORY
from nebengjek_plugins.profiles.routes import Guard, OperatorsController, ProfilesController
from nebengjek_plugins.profiles.search import Search
from nebengjek_plugins.profiles.service import Profiles, Signups
from nebengjek_plugins.profiles.settings import ProfilesSettings


def profiles(
    bus: MessageBus,
    database: Database,
    state: FastState,
    clock: Clock,
    admin_guard: Guard,
    settings: ProfilesSettings,
) -> Sequence[Module]:
    """Profiles, pictures, the operators' search for users, sign-ups by day."""
    cache = Cache(state, clock, ttl=settings.cache_seconds)
    people = Profiles(database, cache, clock)
    files = Files(settings)
    gallery = Gallery(bus, database, state, clock, files, cache, settings)
    signups = Signups(database)
    search = Search(bus, database, clock, others=[people.catch_up, signups.catch_up])
    own: dict[str, Any] = {"profiles": people, "gallery": gallery}
    operators: dict[str, Any] = {"search": search, "signups": signups, "guards": [admin_guard]}
    return [
        Module(
            name="profiles",
            routes=[
                type("Profiles", (ProfilesController,), own),
                type("ProfilesOperators", (OperatorsController,), operators),
            ],
            history=HISTORY,
            says=[UserAvatarUploaded],
            asks=[AccountsAfter],
            hears=[
                on(UserCreated, people.heard),
                on(UserUpdated, people.heard),
                on(UserDriverRegistered, people.heard),
            ],
            start=files.open,
        ),
        Module(
            name="profiles.search",
            hears=[
                on(UserCreated, search.heard),
                on(UserUpdated, search.heard),
                on(UserDriverRegistered, search.heard),
            ],
        ),
        Module(name="profiles.analytics", hears=[on(UserCreated, signups.heard)]),
        Module(
            name="profiles.thumbnails",
            hears=[
                on(UserAvatarUploaded, gallery.uploaded, concurrency=2 * settings.workers, max_ack_pending=256),
            ],
            sweeps=[every(60.0, gallery.tidy)],
            start=files.open,
        ),
    ]
