"""Access tokens: signed, short, and the only place that a user's id is taken from."""

from datetime import datetime, timedelta

import jwt
from msgspec import Struct

from nebengjek.clock import Clock
from nebengjek.contracts.users import Role
from nebengjek.errors import Unauthenticated

ALGORITHM = "HS256"
ISSUER = "nebengjek"


class Identity(Struct, frozen=True, kw_only=True):
    """Who is asking. ``session_id``: one login; it ends at logout, whatever the token's time."""

    user_id: str
    role: Role
    session_id: str
    expires_at: datetime


class Tokens:
    """Issue and read access tokens (JWT, HMAC-SHA256, the algorithm pinned)."""

    def __init__(self, secret: str, *, lifetime: float, clock: Clock) -> None:
        self._secret = secret
        self._lifetime = lifetime
        self._clock = clock

    def issue(self, user_id: str, role: Role, session_id: str) -> tuple[str, Identity]:
        now = self._clock.now()
        expires_at = (now + timedelta(seconds=self._lifetime)).replace(microsecond=0)
        claims = {"sub": user_id, "role": role, "sid": session_id, "iss": ISSUER, "iat": now, "exp": expires_at}
        token = jwt.encode(claims, self._secret, algorithm=ALGORITHM)
        return token, Identity(user_id=user_id, role=role, session_id=session_id, expires_at=expires_at)

    def read(self, token: str) -> Identity:
        """Raises Unauthenticated: not ours, changed, or expired."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                options={"require": ["exp", "sub", "sid", "role"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError as error:
            raise Unauthenticated("the token is not valid") from error
        # The clock is ours, so that a test can move it past the end of a token.
        expires_at = datetime.fromtimestamp(claims["exp"], tz=self._clock.now().tzinfo)
        if expires_at <= self._clock.now():
            raise Unauthenticated("the token has expired")
        return Identity(user_id=claims["sub"], role=claims["role"], session_id=claims["sid"], expires_at=expires_at)
