"""The help desk that needs no model and no network: a handful of rules over the user's own rides.

What it does not know goes to a person. It answers in Indonesian to who writes so, else in English.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from nebengjek.bus.errors import BusError
from nebengjek.contracts.rides import LedgerEntry, Ride, RideDetails
from nebengjek.errors import Unavailable
from nebengjek_plugins.chat.assistants.interface import AssistantFailed, Question, Said, Used
from nebengjek_plugins.chat.tools import Tools


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INDONESIAN = _words(
    "saya aku di mana dimana kenapa mengapa berapa sopir pengemudi ketinggalan tertinggal bayar "
    "tarif ongkos biaya belum sudah tidak bisa tolong batal membatalkan barang hilang "
    "kapan lama petugas orang terima kasih halo selamat pagi siang sore malam apa yang ini itu "
    "penumpang pendapatan"
)
_AMOUNT = re.compile(r"(?<![\d.,])(?:rp\.?\s*)?(\d{1,3}(?:[.,]\d{3})+|\d{3,9})(?![\d]|[.,]\d)", re.IGNORECASE)
_RIDES = 20
"""Rides that are searched for an amount."""


class RideDesk:
    """An ``Assistant``. Made anew for each question: it keeps nothing."""

    async def answer(self, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        text = question.message.lower()
        words = set(re.findall(r"[a-z]+", text))
        desk = _Desk(tools, indonesian=len(words & _INDONESIAN) * 3 >= len(words))
        try:
            answer = await desk.reply(text, words)
        except (Unavailable, BusError) as error:
            raise AssistantFailed("UNAVAILABLE", str(error)) from error
        # Word by word, as it would be spoken.
        for word in re.findall(r"\S+\s*", answer):
            yield Said(word)
        yield Used(model="ride_desk")


class _Desk:
    def __init__(self, tools: Tools, *, indonesian: bool) -> None:
        self._tools = tools
        self._indonesian = indonesian

    def _say(self, english: str, indonesian: str) -> str:
        return indonesian if self._indonesian else english

    async def reply(self, text: str, words: set[str]) -> str:
        rules: Sequence[tuple[bool, Callable[[], Awaitable[str]]]] = (
            (_has(words, _PERSON) or "real person" in text, self._person),
            (_has(words, _LOST), self._lost),
            (
                (_has(words, _WHERE) and _has(words, _PARTY)) or (_has(words, _WHEN) and not _has(words, _MONEY)),
                self._where,
            ),
            (_has(words, _EARNED), self._earned),
            (_AMOUNT.search(text) is not None and _has(words, _WHY | _MONEY), lambda: self._amount(text)),
            (_has(words, _MONEY), lambda: self._fare(None)),
            (_has(words, _PAID), self._payment),
            (_has(words, _CANCEL), self._cancel),
            (_has(words, _SEARCH) and _has(words, _PARTY), self._search),
            (words <= _POLITE and bool(words), self._polite),
        )
        for applies, rule in rules:
            if applies:
                return await rule()
        return await self._not_known(text)

    # -- where, when

    async def _where(self) -> str:
        present = await self._tools.present()
        ride = present.ride
        if ride is None or ride.status not in ("PICKUP", "ONGOING"):
            return await self._search()
        other = await self._tools.other_party()
        who = self._other(ride)
        if other is None or not other.seen:
            return self._say(
                f"I do not see where {who} is: that phone has sent no position lately.",
                f"Posisi {who} belum terlihat: ponselnya belum mengirim lokasi.",
            )
        age = self._age(other.age_seconds or 0)
        if ride.status == "ONGOING":
            return self._say(
                f"You are on the way together; the last position is {age}.",
                f"Anda sedang dalam perjalanan bersama; posisi terakhir {age}.",
            )
        return self._say(
            f"{who.capitalize()} is {other.distance_km:.2f} km away and will take about {other.eta_minutes} min"
            f" (position {age}).",
            f"{who.capitalize()} berjarak {_number(other.distance_km)} km, kira-kira {other.eta_minutes} menit lagi"
            f" (posisi {age}).",
        )

    async def _search(self) -> str:
        present = await self._tools.present()
        if present.ride is not None and present.ride.status in ("PICKUP", "ONGOING"):
            return await self._where()
        if present.search.match is not None:
            return self._say(
                "You are matched; the ride is being opened.", "Anda sudah dipasangkan; perjalanan disiapkan."
            )
        if present.search.proposals:
            return self._say(
                f"You have {len(present.search.proposals)} proposal(s) to answer: accept one, and it begins.",
                f"Ada {len(present.search.proposals)} tawaran menunggu jawaban: terima salah satu untuk mulai.",
            )
        return self._say(
            "You have no ride under way and no proposal is open. While your finder is on, drivers who come near are"
            " proposed to you.",
            "Anda tidak sedang dalam perjalanan dan belum ada tawaran. Selama pencarian aktif, pengemudi terdekat akan"
            " ditawarkan.",
        )

    # -- money

    async def _amount(self, text: str) -> str:
        wanted = {int(re.sub(r"[.,]", "", amount)) for amount in _AMOUNT.findall(text)}
        for ride in await self._tools.recent_rides(_RIDES):
            amounts = {ride.total_cost, ride.adjusted_cost, ride.admin_fee, ride.driver_payout}
            if wanted & {amount for amount in amounts if amount}:
                return await self._fare(ride)
        asked = ", ".join(self._rupiah(amount) for amount in sorted(wanted))
        return self._say(
            f"None of your last {_RIDES} rides has {asked} in its bill. ",
            f"Tidak ada tagihan {asked} pada {_RIDES} perjalanan terakhir Anda. ",
        ) + await self._hand_over(f"amount {asked} in no bill")

    async def _fare(self, ride: Ride | None) -> str:
        ride = ride or next((one for one in await self._tools.recent_rides(_RIDES) if one.total_cost is not None), None)
        if ride is None:
            return self._say(
                "You have no ride with a bill yet. The meter counts the kilometres that are driven, and the app shows"
                " an estimate before you order.",
                "Anda belum punya perjalanan dengan tagihan. Argo menghitung kilometer yang ditempuh, dan aplikasi"
                " menampilkan perkiraan sebelum memesan.",
            )
        details = await self._tools.ride(ride.ride_id)
        return self._bill(ride if details is None else details)

    def _bill(self, ride: Ride) -> str:
        total, adjusted = ride.total_cost or 0, ride.adjusted_cost or 0
        km = _number(ride.distance_km, 3) if self._indonesian else f"{ride.distance_km:.3f}"
        rate = _rate(ride)
        each = f" x {self._rupiah(rate)}" if rate is not None else ""
        parts = [
            self._say(
                f"{km} km{each} make {self._rupiah(total)} by the meter.",
                f"{km} km{each} menjadi {self._rupiah(total)} menurut argo.",
            )
        ]
        if isinstance(ride, RideDetails) and len(ride.ledger) > 1:
            parts.append(
                self._say(
                    f"The ledger has {len(ride.ledger)} entries, from {_clock(ride.ledger[0])} to"
                    f" {_clock(ride.ledger[-1])} UTC.",
                    f"Catatannya {len(ride.ledger)} entri, dari {_clock(ride.ledger[0])} sampai"
                    f" {_clock(ride.ledger[-1])} UTC.",
                )
            )
        if adjusted != total:
            parts.append(
                self._say(
                    f"The driver asked for less: you pay {self._rupiah(adjusted)}.",
                    f"Pengemudi meminta lebih sedikit: yang dibayar {self._rupiah(adjusted)}.",
                )
            )
        if ride.driver_id == self._tools.user_id and ride.driver_payout is not None:
            parts.append(
                self._say(
                    f"You get {self._rupiah(ride.driver_payout)} after a fee of {self._rupiah(ride.admin_fee or 0)}.",
                    f"Anda menerima {self._rupiah(ride.driver_payout)}"
                    f" setelah biaya {self._rupiah(ride.admin_fee or 0)}.",
                )
            )
        return " ".join(parts)

    async def _earned(self) -> str:
        rides = [ride for ride in await self._tools.recent_rides(_RIDES) if ride.driver_id == self._tools.user_id]
        billed = [ride.driver_payout for ride in rides if ride.driver_payout is not None]
        if not billed:
            return await self._fare(None)
        return self._say(
            f"Your last {len(billed)} billed rides pay you {self._rupiah(sum(billed))}.",
            f"{len(billed)} perjalanan terakhir Anda menghasilkan {self._rupiah(sum(billed))}.",
        )

    async def _payment(self) -> str:
        present = await self._tools.present()
        ride = present.ride
        if ride is not None and ride.payment is not None and ride.payment.status != "ACCEPTED":
            amount = self._rupiah(ride.adjusted_cost or 0)
            return self._say(
                f"{amount} is still to be paid (tries so far: {ride.payment.attempts}, last: {ride.payment.status})."
                " You can pay again with another method, or in cash to the driver, who then confirms it.",
                f"{amount} belum dibayar (percobaan: {ride.payment.attempts}, terakhir: {ride.payment.status})."
                " Anda bisa membayar lagi dengan cara lain, atau tunai kepada pengemudi yang lalu mengonfirmasi.",
            )
        return self._say("Nothing is left to pay.", "Tidak ada yang harus dibayar.")

    async def _cancel(self) -> str:
        present = await self._tools.present()
        if present.ride is None:
            return self._say(
                "You have no ride to cancel; the finder can be switched off at any time.",
                "Tidak ada perjalanan untuk dibatalkan; pencarian bisa dimatikan kapan saja.",
            )
        if present.ride.status == "PICKUP":
            return self._say(
                "Until the ride starts either of you can cancel it in the app; nobody is billed.",
                "Sebelum perjalanan dimulai, Anda berdua bisa membatalkannya di aplikasi tanpa biaya.",
            )
        return self._say(
            "The ride has started and can no longer be cancelled; the driver ends it where you are. ",
            "Perjalanan sudah dimulai dan tidak bisa dibatalkan; pengemudi mengakhirinya di tempat Anda. ",
        )

    # -- people

    async def _lost(self) -> str:
        rides = await self._tools.recent_rides(1)
        if not rides:
            return self._say(
                "I find no ride of yours in which it could have been left. ",
                "Saya tidak menemukan perjalanan Anda tempat barang itu tertinggal. ",
            ) + await self._hand_over("something was lost, no ride is known")
        handed = await self._hand_over(f"something was left behind in ride {rides[0].ride_id}")
        return self._say(
            f"Your last ride was with {self._other(rides[0])}; you can write to each other in the ride's chat until"
            f" half an hour after its end. {handed}",
            f"Perjalanan terakhir Anda dengan {self._other(rides[0])}; Anda bisa saling menulis di obrolan perjalanan"
            f" sampai setengah jam setelah selesai. {handed}",
        )

    async def _person(self) -> str:
        return await self._hand_over("asked for a person")

    async def _polite(self) -> str:
        return self._say("You are welcome. What can I do for you?", "Sama-sama. Apa yang bisa saya bantu?")

    async def _not_known(self, text: str) -> str:
        sorry = self._say("That I do not know. ", "Itu saya tidak tahu. ")
        return sorry + await self._hand_over(text)

    async def _hand_over(self, reason: str) -> str:
        if await self._tools.hand_over(reason):
            return self._say(
                "I have handed it over to a colleague, who will answer here.",
                "Sudah saya teruskan ke petugas, yang akan menjawab di sini.",
            )
        return self._say(
            "A colleague has your question already and will answer here.",
            "Petugas sudah menerima pertanyaan Anda dan akan menjawab di sini.",
        )

    # -- words

    def _other(self, ride: Ride) -> str:
        if ride.passenger_id == self._tools.user_id:
            return self._say("your driver", "pengemudi Anda")
        return self._say("your passenger", "penumpang Anda")

    def _age(self, seconds: int) -> str:
        if seconds < 90:
            return self._say(f"{seconds} s old", f"{seconds} detik lalu")
        return self._say(f"{seconds // 60} min old", f"{seconds // 60} menit lalu")

    def _rupiah(self, amount: int) -> str:
        shown = f"{amount:,}"
        return f"Rp {shown.replace(',', '.')}" if self._indonesian else f"Rp {shown}"


def _has(words: set[str], known: frozenset[str]) -> bool:
    return not words.isdisjoint(known)


def _number(value: float | None, digits: int = 2) -> str:
    return f"{value or 0:.{digits}f}".replace(".", ",")


def _rate(ride: Ride) -> int | None:
    """Rupiah a kilometre, where the bill is just that: not where a minimum was charged."""
    if not ride.total_cost or not ride.distance_km:
        return None
    rate = round(ride.total_cost / ride.distance_km)
    near = (rate, round(rate, -1), round(rate, -2), round(rate, -3))
    exact = [one for one in near if abs(one * ride.distance_km - ride.total_cost) <= 0.51 + one / 2000]
    return exact[-1] if exact else None


def _clock(entry: LedgerEntry) -> str:
    return f"{entry.created_at:%H:%M:%S}"


_PARTY = _words("driver rider passenger car motorcycle ojek sopir supir pengemudi penumpang ride he she they")
_WHERE = _words("where mana dimana far jauh location lokasi posisi position")
_WHEN = _words("eta arrive arrives arriving soon kapan minutes menit waiting menunggu")
_WHY = _words("why kenapa mengapa how")
_MONEY = _words("fare price cost costs bill rupiah rp tarif ongkos biaya harga tagihan charged expensive mahal")
_EARNED = _words("earn earned earnings payout income pendapatan penghasilan")
_PAID = _words("pay paid payment declined due bayar dibayar membayar pembayaran")
_CANCEL = _words("cancel cancelled batal batalkan membatalkan dibatalkan")
_SEARCH = _words("no find found search searching nobody cari mencari belum dapat")
_LOST = _words("lost left forgot forgotten ketinggalan tertinggal hilang lupa kehilangan")
_PERSON = _words("human agent operator person petugas manusia complaint komplain keluhan")
_POLITE = _words("hi hello halo hai thanks thank you terima kasih makasih selamat pagi siang sore malam good ok")
