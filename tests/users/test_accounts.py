"""Logins that can be ended, refresh tokens that can be used once, accounts that can be left."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from nebengjek.contracts.geo import Location
from nebengjek.contracts.users import (
    AccountsAfter,
    UserAvatarUploaded,
    UserBeacon,
    UserCreated,
    UserDriverRegistered,
    UserFinder,
    UserUpdated,
    Vehicle,
)
from nebengjek.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from nebengjek.users import store
from nebengjek.users.frames import BeaconData, FinderData, PhonePoint
from tests.users.stage import PHONE, Stage, stage

HERE = PhonePoint(latitude=-6.1754, longitude=106.8272)
HERE_TOO = Location(latitude=-6.1950, longitude=106.8230)


async def ended(on: Stage, session_id: str) -> bool:
    return await on.state.get(f"session:ended:{session_id}") is not None


# -- login


async def test_the_first_login_makes_a_passenger_and_says_so_once(tmp_path: Path) -> None:
    async with stage(tmp_path, UserCreated) as on:
        first, _ = await on.login()
        again, _ = await on.login()
        assert first.user_id == again.user_id
        assert first.session_id != again.session_id
        await on.until(lambda: len(on.said) == 1)
        [created] = on.heard(UserCreated)
        assert (created.user_id, created.version, created.role) == (first.user_id, 1, "passenger")
        me = await on.accounts.me(first.user_id)
        assert (me.msisdn, me.role, me.full_name, me.vehicle) == (PHONE, "passenger", None, None)


async def test_two_first_logins_at_once_make_one_user(tmp_path: Path) -> None:
    async with stage(tmp_path, UserCreated) as on:
        logins = await asyncio.gather(*(on.login() for _ in range(5)))
        assert len({identity.user_id for identity, _ in logins}) == 1
        await on.until(lambda: len(on.said) == 1)


# -- refresh and logout


async def test_a_refresh_token_is_used_once_and_gives_a_new_pair(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, refresh = await on.login()
        on.clock.advance(3600)
        second = await on.accounts.refresh(refresh)
        assert on.tokens.read(second.token).session_id == identity.session_id
        assert second.refresh_token != refresh
        assert second.expires_at == int(on.clock.seconds()) + 86400
        third = await on.accounts.refresh(second.refresh_token)
        assert third.refresh_token not in (refresh, second.refresh_token)


async def test_a_refresh_token_that_comes_twice_ends_the_session_of_both(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, refresh = await on.login()
        other, others = await on.login()
        fresh = await on.accounts.refresh(refresh)
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(refresh)
        assert await ended(on, identity.session_id)
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(fresh.refresh_token)
        # His other phone goes on.
        assert not await ended(on, other.session_id)
        await on.accounts.refresh(others)


async def test_of_two_who_use_it_at_the_same_instant_at_most_one_gets_a_pair_and_the_session_ends(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as on:
        identity, refresh = await on.login()
        answers = await asyncio.gather(*(on.accounts.refresh(refresh) for _ in range(2)), return_exceptions=True)
        assert [type(answer) for answer in answers].count(Unauthenticated) >= 1
        assert await ended(on, identity.session_id)


async def test_a_refresh_token_ends_after_its_days(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        _, refresh = await on.login()
        on.clock.advance(30 * 86400 + 1)
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(refresh)


@pytest.mark.parametrize("token", ["", "x", "\x00", "' OR 1=1 --", "é" * 100])
async def test_a_refresh_token_that_is_none_is_refused(tmp_path: Path, token: str) -> None:
    async with stage(tmp_path) as on:
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(token)
        await on.accounts.logout(token)


async def test_logout_ends_the_session_and_only_that(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, refresh = await on.login()
        other, others = await on.login()
        await on.accounts.logout(refresh)
        await on.accounts.logout(refresh)
        assert await ended(on, identity.session_id)
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(refresh)
        assert not await ended(on, other.session_id)
        await on.accounts.refresh(others)


async def test_logout_with_an_older_token_of_the_same_login_ends_it_too(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, first = await on.login()
        second = await on.accounts.refresh(first)
        await on.accounts.logout(first)
        assert await ended(on, identity.session_id)
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(second.refresh_token)


async def test_an_ended_session_stays_ended_when_the_fast_state_was_lost(tmp_path: Path) -> None:
    """Embedded, it is lost with each restart."""
    async with stage(tmp_path) as on:
        gone, refresh = await on.login()
        alive, others = await on.login()
        await on.accounts.refresh(others)
        await on.accounts.logout(refresh)
        await on.state.close()
        assert not await ended(on, gone.session_id)
        await on.accounts.restore()
        assert await ended(on, gone.session_id)
        assert not await ended(on, alive.session_id)
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(refresh)
        # No token of that session lives longer than a day.
        await on.state.close()
        on.clock.advance(86401)
        await on.accounts.restore()
        assert not await ended(on, gone.session_id)


async def test_tokens_are_kept_as_hashes(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        _, refresh = await on.login()
        async with on.database.read() as tx:
            rows = (await tx.execute(select(store.refresh_tokens))).all()
        assert refresh not in str(rows)


# -- drivers


async def test_a_passenger_becomes_a_driver_and_says_so(tmp_path: Path) -> None:
    async with stage(tmp_path, UserDriverRegistered) as on:
        identity, _ = await on.login()
        made = await on.accounts.register_driver(identity, "Budi", "motorcycle", "b1234xyz")
        assert made.vehicle == Vehicle(vehicle_type="motorcycle", vehicle_plate="B 1234 XYZ")
        assert on.tokens.read(made.token).role == "driver"
        assert on.tokens.read(made.token).session_id == identity.session_id
        me = await on.accounts.me(identity.user_id)
        assert (me.role, me.full_name, me.vehicle) == ("driver", "Budi", made.vehicle)
        await on.until(lambda: len(on.said) == 1)
        assert on.said[0].vehicle == made.vehicle
        with pytest.raises(Conflict) as refused:
            await on.accounts.register_driver(identity, "Budi", "car", "B 1 A")
        assert refused.value.code == "DRIVER_EXISTS"


async def test_a_plate_belongs_to_one_driver_however_it_is_written(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        one, _ = await on.login()
        two, _ = await on.login("+628111234568")
        await on.accounts.register_driver(one, "Budi", "motorcycle", "B 1234 XYZ")
        with pytest.raises(Conflict) as refused:
            await on.accounts.register_driver(two, "Citra", "car", "b-1234-xyz")
        assert refused.value.code == "DRIVER_EXISTS"
        assert (await on.accounts.me(two.user_id)).role == "passenger"
        with pytest.raises(Invalid):
            await on.accounts.register_driver(two, "Citra", "car", "12")
        await on.accounts.register_driver(two, "Citra", "car", "B 1235 XYZ")


# -- the profile


async def test_changes_of_the_profile_are_said_with_a_version(tmp_path: Path) -> None:
    async with stage(tmp_path, UserUpdated) as on:
        identity, _ = await on.login()
        user = await on.accounts.update(identity.user_id, {"full_name": "Citra", "email": "citra@example.org"})
        assert (user.full_name, user.email) == ("Citra", "citra@example.org")
        user = await on.accounts.update(identity.user_id, {"email": None})
        assert (user.full_name, user.email) == ("Citra", None)
        before = await on.accounts.me(identity.user_id)
        assert await on.accounts.update(identity.user_id, {}) == before
        await on.until(lambda: len(on.said) == 2)
        first, second = on.heard(UserUpdated)
        assert (first.full_name, first.email, first.deleted) == ("Citra", "citra@example.org", False)
        assert (first.changed, second.changed) == (("full_name", "email"), ("email",))
        assert (second.email, second.version) == (None, first.version + 1)


async def test_the_newest_picture_is_shown_whatever_comes_last(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, _ = await on.login()
        for version, url in ((2, "/avatars/two"), (1, "/avatars/one"), (2, "/avatars/other")):
            await on.accounts.avatar(
                UserAvatarUploaded(user_id=identity.user_id, version=version, avatar_url=url, file_key="x")
            )
            assert (await on.accounts.me(identity.user_id)).avatar_url == "/avatars/two"


async def test_accounts_are_read_page_by_page_without_those_who_left(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        people = [(await on.login(f"+62811123456{digit}"))[0] for digit in range(4)]
        await on.accounts.register_driver(people[1], "Budi", "car", "B 1 A")
        await on.accounts.delete(people[2].user_id)
        first = await on.accounts.after(AccountsAfter(limit=2))
        rest = await on.accounts.after(AccountsAfter(after=first.items[-1].user_id, limit=2))
        assert (first.total, rest.total) == (3, None)
        shown = {one.user_id: one for one in (*first.items, *rest.items)}
        assert list(shown) == sorted(people[digit].user_id for digit in (0, 1, 3))
        driver = shown[people[1].user_id]
        assert (driver.full_name, driver.msisdn_suffix) == ("Budi", "234561")
        assert driver.vehicle == Vehicle(vehicle_type="car", vehicle_plate="B 1 A")


async def test_a_name_is_a_name_whatever_is_in_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, _ = await on.login()
        for name in ("Robert'); DROP TABLE users;--", '{"$ne": null}', "<script>", "Siti 🛵", "O'Neill"):
            assert (await on.accounts.update(identity.user_id, {"full_name": name})).full_name == name


# -- leaving


async def test_who_leaves_is_anonymous_and_his_number_is_free_again(tmp_path: Path) -> None:
    async with stage(tmp_path, UserUpdated) as on:
        identity, refresh = await on.login()
        await on.accounts.register_driver(identity, "Budi", "motorcycle", "B 1234 XYZ")
        await on.accounts.delete(identity.user_id)
        assert await ended(on, identity.session_id)
        for ask in (on.accounts.me(identity.user_id), on.accounts.delete(identity.user_id)):
            with pytest.raises(NotFound):
                await ask
        with pytest.raises(Unauthenticated):
            await on.accounts.refresh(refresh)
        async with on.database.read() as tx:
            row = (await tx.execute(select(store.users))).one()
            vehicle = (await tx.execute(select(store.drivers))).one()
        assert (row.msisdn, row.full_name, row.email) == (None, None, None)
        assert "1234" not in vehicle.vehicle_plate
        await on.until(lambda: bool(on.said) and on.said[-1].deleted)
        gone = on.said[-1]
        assert (gone.full_name, gone.email, gone.version) == (None, None, row.version)
        # The number and the plate may be somebody else's now.
        new, _ = await on.login()
        assert new.user_id != identity.user_id
        await on.accounts.register_driver(new, "Citra", "motorcycle", "B 1234 XYZ")


async def test_who_leaves_is_no_longer_looked_for(tmp_path: Path) -> None:
    """Whoever keeps a pool or a search of him hears that both are off, with a newer version."""
    async with stage(tmp_path, UserBeacon, UserFinder) as on:
        driver, _ = await on.login()
        await on.accounts.register_driver(driver, "Budi", "motorcycle", "B 1234 XYZ")
        await on.users.beacon(driver.user_id, BeaconData(is_active=True, location=HERE))
        passenger, _ = await on.login("+628111234568")
        looking = FinderData(is_active=True, location=HERE, target_location=HERE_TOO)
        await on.users.finder(passenger.user_id, looking)
        for identity in (driver, passenger):
            await on.accounts.delete(identity.user_id)
        await on.until(lambda: len(on.said) == 4)
        there, away = on.heard(UserBeacon)
        assert (there.is_active, away.is_active) == (True, False)
        assert away.version > there.version
        sought, given_up = on.heard(UserFinder)
        assert (sought.is_active, given_up.is_active) == (True, False)
        assert given_up.version > sought.version


async def test_who_has_nothing_switched_on_leaves_without_a_word_about_it(tmp_path: Path) -> None:
    async with stage(tmp_path, UserBeacon, UserFinder, UserUpdated) as on:
        identity, _ = await on.login()
        await on.accounts.delete(identity.user_id)
        await on.until(lambda: [type(event) for event in on.said] == [UserUpdated])


async def test_who_is_bound_cannot_leave(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, _ = await on.login()
        async with on.database.begin() as tx:
            await store.engage(tx, "m", (identity.user_id,), on.clock.now())
        with pytest.raises(Conflict) as refused:
            await on.accounts.delete(identity.user_id)
        assert refused.value.code == "CONFLICT"
        async with on.database.begin() as tx:
            await store.release(tx, "m", (identity.user_id,), on.clock.now())
            await store.note_payment(tx, "r", identity.user_id, paid=False, now=on.clock.now())
        with pytest.raises(Conflict) as refused:
            await on.accounts.delete(identity.user_id)
        assert refused.value.code == "PAYMENT_DUE"
        async with on.database.begin() as tx:
            await store.note_payment(tx, "r", identity.user_id, paid=True, now=on.clock.now())
        await on.accounts.delete(identity.user_id)


# -- beacon and finder


async def test_each_has_his_own_switch(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        passenger, _ = await on.login()
        driver, _ = await on.login("+628111234568")
        await on.accounts.register_driver(driver, "Budi", "motorcycle", "B 1234 XYZ")
        with pytest.raises(Forbidden):
            await on.users.beacon(passenger.user_id, BeaconData(is_active=True, location=HERE))
        with pytest.raises(Forbidden):
            await on.users.finder(driver.user_id, FinderData(is_active=True, location=HERE, target_location=HERE_TOO))
        with pytest.raises(Invalid):
            await on.users.beacon(driver.user_id, BeaconData(is_active=True))
        with pytest.raises(Invalid):
            await on.users.finder(passenger.user_id, FinderData(is_active=True, location=HERE))
        with pytest.raises(NotFound):
            await on.users.beacon("0192f0c0-7c4e-7a31-9d5b-5b1f0f3a1c01", BeaconData(is_active=False))


async def test_a_finder_says_with_which_version_its_search_began(tmp_path: Path) -> None:
    async with stage(tmp_path, UserFinder) as on:
        passenger, _ = await on.login()
        looking = FinderData(is_active=True, location=HERE, target_location=HERE_TOO)
        for data in (looking, looking, FinderData(is_active=False), looking, looking):
            await on.users.finder(passenger.user_id, data)
        await on.until(lambda: len(on.said) == 5)
        first, again, _, second, later = sorted(on.heard(UserFinder), key=lambda finder: finder.version)
        assert first.began == again.began == first.version
        assert second.began == later.began == second.version


async def test_an_end_that_overtakes_its_beginning_binds_nobody(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, _ = await on.login()
        async with on.database.begin() as tx:
            await store.release(tx, "m", (identity.user_id,), on.clock.now())
            await store.engage(tx, "m", (identity.user_id,), on.clock.now())
            assert await store.engaged_in(tx, identity.user_id) is None


async def test_a_payment_that_was_heard_to_be_made_is_not_due_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        identity, _ = await on.login()
        async with on.database.begin() as tx:
            await store.note_payment(tx, "r", identity.user_id, paid=True, now=on.clock.now())
            await store.note_payment(tx, "r", identity.user_id, paid=False, now=on.clock.now())
            assert await store.owes(tx, identity.user_id) is None
