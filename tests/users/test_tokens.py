"""Access tokens: signed by us, with one algorithm, until their end."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest

from nebengjek.clock import ManualClock
from nebengjek.errors import Unauthenticated
from nebengjek.tokens import ALGORITHM, ISSUER, Tokens

SECRET = "a secret that is long enough for every algorithm that somebody might try"
START = datetime(2026, 3, 1, 7, 30, tzinfo=UTC)


class Office:
    def __init__(self) -> None:
        self.clock = ManualClock(START)
        self.tokens = Tokens(SECRET, lifetime=86400, clock=self.clock)
        self.claims: dict[str, Any] = {
            "sub": "u",
            "role": "driver",
            "sid": "s",
            "iss": ISSUER,
            "exp": START.timestamp() + 60,
        }

    def forge(self, *, key: str = SECRET, algorithm: str = ALGORITHM, **changes: Any) -> str:
        claims = {name: value for name, value in (self.claims | changes).items() if value is not None}
        return jwt.encode(claims, key, algorithm=algorithm)


def test_who_was_told_is_who_is_read() -> None:
    office = Office()
    token, issued = office.tokens.issue("user", "passenger", "session")
    assert office.tokens.read(token) == issued
    assert (issued.user_id, issued.role, issued.session_id) == ("user", "passenger", "session")
    assert (issued.expires_at - START).total_seconds() == 86400


def test_it_ends_when_it_says() -> None:
    office = Office()
    token, _ = office.tokens.issue("user", "passenger", "session")
    office.clock.advance(86399)
    office.tokens.read(token)
    office.clock.advance(1)
    with pytest.raises(Unauthenticated, match="expired"):
        office.tokens.read(token)


def test_the_forger_of_these_tests_can_make_a_good_one() -> None:
    office = Office()
    assert office.tokens.read(office.forge()).user_id == "u"


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "another secret that is long enough for every algorithm one might try"},
        {"algorithm": "HS384"},
        {"algorithm": "HS512"},
        {"iss": "somebody"},
        {"iss": None},
        {"exp": None},
        {"exp": START.timestamp() - 1},
        {"sub": None},
        {"sid": None},
        {"role": None},
    ],
    ids=str,
)
def test_what_is_not_quite_ours_is_refused(changes: dict[str, Any]) -> None:
    office = Office()
    with pytest.raises(Unauthenticated):
        office.tokens.read(office.forge(**changes))


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "RS256", "HS256"])
def test_a_token_without_a_signature_is_none(algorithm: str) -> None:
    office = Office()
    unsigned = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(office.claims)}."
    with pytest.raises(Unauthenticated):
        office.tokens.read(unsigned)


def test_a_changed_role_is_noticed() -> None:
    office = Office()
    head, _, signature = office.tokens.issue("user", "passenger", "session")[0].split(".")
    with pytest.raises(Unauthenticated):
        office.tokens.read(f"{head}.{part(office.claims | {'role': 'driver'})}.{signature}")


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "x" * 10_000, "é.é.é", "\x00", "null"])
def test_whatever_is_sent_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Office().tokens.read(text)
