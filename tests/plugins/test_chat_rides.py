"""The desk answers from the user's own rides; the two of a ride write to each other, and nobody else does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nebengjek.settings import DEVELOPMENT_ADMIN_KEY
from nebengjek_plugins.chat.masking import mask_phone_numbers
from tests.flows.conftest import Backend
from tests.flows.world import MONAS, Phone, Refused, World, moved
from tests.plugins.streams import Reader, reading

ARABIC = {ord("0") + digit: 0x660 + digit for digit in range(10)}
WIDE = {ord("0") + digit: 0xFF10 + digit for digit in range(10)}
CHAT = ["nebengjek_plugins.chat:chat"]
OPERATOR = {"X-API-Key": DEVELOPMENT_ADMIN_KEY}


@asynccontextmanager
async def town(backend: Backend, **settings: Any) -> AsyncIterator[World]:
    async with backend.own_world(plugins=CHAT, plugin={"chat": {"messages_per_minute": 1000, **settings}}) as world:
        yield world


async def answer(phone: Phone, reader: Reader, session_id: str, text: str) -> str:
    asked = await phone.ask("POST", f"/chat/{session_id}/messages", {"message": text})
    whole = await reader.expect("message_complete", reply_to=asked["message_id"])
    said: str = whole.data["text"]
    assert reader.text(asked["message_id"]) == said
    return said


async def test_the_desk_knows_where_the_driver_is_and_what_the_ride_cost(backend: Backend) -> None:
    async with town(backend) as world:
        ani, budi = await asyncio.gather(world.passenger(), world.driver())
        async with reading(ani, "help") as reader:
            assert "no ride under way" in await answer(ani, reader, "help", "Where is my driver?")
            assert "estimate" in await answer(ani, reader, "help", "what does it cost")
            ride_id = await world.pickup(budi, ani)
            world.clock.advance(60)
            await budi.point(moved(MONAS, 1000))
            await ani.point(MONAS)
            said = await answer(ani, reader, "help", "where is my driver")
            assert "1.00 km" in said
            assert "about 5 min" in said
            said = await answer(ani, reader, "help", "di mana sopir saya")
            assert "1,00 km" in said
            assert "5 menit" in said
            assert "cancel" in await answer(ani, reader, "help", "can I cancel")
            world.clock.advance(200)
            await budi.point(MONAS)
            await budi.say("ride.start", {"ride_id": ride_id})
            await world.drive(budi, 2224)
            bill = await budi.say("ride.arrive", {"ride_id": ride_id})
            total = bill["total_cost"]
            assert "still to be paid" in await answer(ani, reader, "help", "did the payment fail?")
            await ani.say("ride.pay", {"ride_id": ride_id, "amount": total})
            await ani.expect("ride.completed")
            said = await answer(ani, reader, "help", f"why {total:,} rupiah")
            assert f"Rp {total:,} by the meter" in said
            assert f"{bill['distance_km']:.3f} km x Rp 3,000" in said
            said = await answer(ani, reader, "help", f"kenapa bayar {total:,}".replace(",", "."))
            assert f"Rp {total:,}".replace(",", ".") in said
            assert "Nothing is left" in await answer(ani, reader, "help", "is everything paid")
        async with reading(budi, "mine") as reader:
            said = await answer(budi, reader, "mine", "what are my earnings")
            assert f"{bill['driver_payout']:,}" in said


async def test_what_the_desk_does_not_know_goes_to_a_person_who_answers_in_the_same_session(backend: Backend) -> None:
    async with town(backend) as world:
        ani = await world.passenger()
        async with reading(ani, "help") as reader:
            said = await answer(ani, reader, "help", "does the moon charge extra on Sundays")
            assert "I do not know" in said
            assert "colleague" in said
            assert "has your question already" in await answer(ani, reader, "help", "I left my helmet")
            assert (await ani.http("GET", "/admin/chat/queue")).status_code == 401
            queue = (await world.http.get("/admin/chat/queue", headers=OPERATOR)).json()["items"]
            assert [one["handover"]["session_id"] for one in queue] == ["help"]
            assert queue[0]["messages"][0]["text"] == "does the moon charge extra on Sundays"
            path = "/admin/chat/help/messages"
            sent = await world.http.post(path, json={"message": "It does not."}, headers=OPERATOR)
            assert sent.status_code == 201
            assert (await reader.expect("message_complete", role="operator")).data["text"] == "It does not."
        await ani.expect("chat.message", role="operator")
        assert (await world.http.get("/admin/chat/queue", headers=OPERATOR)).json()["items"] == []


async def test_the_two_of_a_ride_write_to_each_other_until_half_an_hour_after_it(backend: Backend) -> None:
    async with town(backend) as world:
        ani, budi, eve = await asyncio.gather(world.passenger(), world.driver(), world.passenger())
        ride_id = await world.pickup(budi, ani)
        match_id = (await ani.expect("match.accepted"))["data"]["match_id"]
        session = f"match-{match_id}"
        await world.quiet()
        for method, path, body in (
            ("POST", f"/chat/{session}/messages", {"message": "hello"}),
            ("GET", f"/chat/{session}/messages", None),
            ("GET", f"/chat/{session}/stream", None),
        ):
            with pytest.raises(Refused, match="FORBIDDEN"):
                await eve.ask(method, path, body)
        async with reading(budi, session) as reader:
            text = "I stand at the gate, call 0812-3456-7890"
            sent = await ani.say("chat.send", {"session_id": session, "message": text}, "a frame")
            # Said again under its id it is answered again, and not written twice.
            assert await ani.say("chat.send", {"session_id": session, "message": text}, "a frame") == sent
            heard = (await reader.expect("message_complete")).data
            assert heard["text"] == "I stand at the gate, call •••"
            assert (heard["message_id"], heard["sender_id"]) == (sent["message_id"], ani.user_id)
        # Sent to his stream is delivered; read is what he says.
        marks = await ani.expect("chat.marks", session_id=session)
        assert marks["data"]["marks"] == {"user_id": budi.user_id, "delivered": 1, "read": 0}
        assert (await budi.say("chat.read", {"session_id": session, "number": 1}))["marked"] is True
        with pytest.raises(Refused, match="FORBIDDEN"):
            await eve.say("chat.send", {"session_id": session, "message": "hello"})
        with pytest.raises(Refused, match="INVALID_FRAME"):
            await ani.say("chat.send", {"session_id": "a.b", "message": "hello"})
        await ani.find(lambda one: one["event"] == "chat.marks" and one["data"]["marks"]["read"] == 1)
        # A phone that is away finds it in its mailbox.
        ready = await _reconnect_data(ani)
        await world.hang_up(ani)
        await budi.ask("POST", f"/chat/{session}/messages", {"message": "I am there"})
        await world.quiet()
        await ani.connect(f"?epoch={ready['epoch']}&last_seq={ready['last_seq']}")
        told = await ani.expect("chat.message", text="I am there")
        assert "seq" in told
        await world.quiet()
        page = await ani.ask("GET", f"/chat/{session}/messages?limit=1")
        assert [item["number"] for item in page["items"]] == [2]
        older = await ani.ask("GET", f"/chat/{session}/messages?limit=1&cursor={page['next_cursor']}")
        assert ([item["number"] for item in older["items"]], older["next_cursor"]) == ([1], None)
        await ani.say("ride.cancel", {"ride_id": ride_id})
        await budi.expect("ride.cancelled")
        await world.quiet()
        await world.advance(1790)
        # The last part of a number that is said in parts is not.
        for part in ("sorry, 0812", "3456", "7890", "bye"):
            await ani.ask("POST", f"/chat/{session}/messages", {"message": part})
        await world.advance(20)
        with pytest.raises(Refused, match="CHAT_CLOSED"):
            await ani.ask("POST", f"/chat/{session}/messages", {"message": "too late"})
        items = (await budi.ask("GET", f"/chat/{session}/messages"))["items"]
        assert [item["text"] for item in items[:-2]] == ["bye", "•••", "3456", "sorry, 0812"]
        sessions = await budi.ask("GET", "/chat/sessions")
        assert [one["session_id"] for one in sessions["items"]] == [session]


async def _reconnect_data(phone: Phone) -> dict[str, Any]:
    ready = (await phone.expect("session.ready"))["data"]
    last = max((frame.get("seq", 0) for frame in phone.frames), default=0)
    return {"epoch": ready["epoch"], "last_seq": last}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("call 081234567890 now", "call ••• now"),
        ("+62 812-3456-7890", "•••"),
        ("0812.3456.7890 or 62 813 1111 2222", "••• or •••"),
        ("081234567890".translate(ARABIC), "•••"),
        ("0812 3456 7890".translate(WIDE), "•••"),
        ("+1 (415) 555-0100 22", "•••"),
        ("(0812) 3456 7890", "(•••"),
        ("0 8 1 2 3 4 5 6 7 8 9 0", "•••"),
        ("0812*3456, 7890", "•••"),
        ("0812....3456....7890", "•••"),
        ("\u200b".join("081234567890"), "•••"),
        ("\ufe0f\u20e3".join("081234567890"), "•••"),
        ("⁰⁸¹²³⁴⁵⁶⁷⁸⁹", "•••"),
        ("O812-3456-789o or later", "••• or later"),
        ("nol delapan satu dua tiga empat lima enam tujuh delapan", "•••"),
        ("Zero Eight 12 three, four five six seven eight", "•••"),
        ("+62(0)812 3456 7890", "•••"),
        ("812-3456-7890", "•••"),
        ("saya di pintu 8, lantai 2, blok 0", "saya di pintu 8, lantai 2, blok 0"),
        ("jam 08:15 - 09:30, 10.000 + 25.000 = 35.000", "jam 08:15 - 09:30, 10.000 + 25.000 = 35.000"),
        ("8.123.456 and 62 800 000 rupiah", "8.123.456 and 62 800 000 rupiah"),
        ("Rp 6.672 for 2,224 km at 10:30", "Rp 6.672 for 2,224 km at 10:30"),
        ("plate B 1234 XYZ, gate 12", "plate B 1234 XYZ, gate 12"),
    ],
)
def test_phone_numbers_are_masked_and_nothing_else(written: str, kept: str) -> None:
    assert mask_phone_numbers(written) == kept
