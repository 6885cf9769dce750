"""Who is said to be gone, and who came back in the very moment."""

from collections.abc import Collection
from pathlib import Path

from nebengjek.contracts.users import UserPresence
from nebengjek.realtime.presence import MemoryPresence
from tests.users.stage import stage


class Hurried(MemoryPresence):
    """``back`` connects as soon as somebody has been told that he is not connected."""

    back: str | None = None

    async def connected(self, user_ids: Collection[str]) -> set[str]:
        found = await super().connected(user_ids)
        if self.back is not None:
            user_id, self.back = self.back, None
            await self.attach(user_id, "another")
        return found


async def test_who_has_been_gone_for_the_grace_is_said_to_be_gone_once(tmp_path: Path) -> None:
    async with stage(tmp_path, UserPresence) as it:
        identity, _ = await it.login()
        presence = it.delivery.presence
        await presence.attach(identity.user_id, "one")
        await it.users.came(identity.user_id)
        await it.users.came(identity.user_id)
        await presence.detach(identity.user_id, "one")
        for _ in range(3):
            it.clock.advance(20)
            await it.users.sweep_presence()
        await it.settled()
        assert [event.online for event in it.heard(UserPresence)] == [True, False]


async def test_who_connects_while_he_is_being_said_to_be_gone_is_online(tmp_path: Path) -> None:
    async with stage(tmp_path, UserPresence) as it:
        identity, _ = await it.login()
        presence = Hurried(it.clock)
        it.delivery.presence = presence
        await presence.attach(identity.user_id, "one")
        await it.users.came(identity.user_id)
        await presence.detach(identity.user_id, "one")
        it.clock.advance(31)
        presence.back = identity.user_id
        # What the phone reads when it connects: it is online still, so it does not say that it came.
        assert (await it.users.state(identity.user_id))[0].online
        await it.users.sweep_presence()
        assert (await it.users.state(identity.user_id))[0].online
        await it.settled()
        events = it.heard(UserPresence)
        assert [event.online for event in sorted(events, key=lambda event: event.version)] == [True, False, True]
