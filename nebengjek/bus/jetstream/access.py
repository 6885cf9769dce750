"""Who we are to a nats-server and what it lets us do: TLS, credentials, its word that something is not permitted."""

import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from nebengjek.contracts.message import InvalidSubject, token
from nebengjek.errors import Misconfigured

INBOX = "_INBOX"
_USER_JWT = b"-----BEGIN NATS USER JWT-----"
_SEED = re.compile(rb"SU[A-Z2-7]{56}\s*")
_VIOLATION = re.compile(
    r"permissions violation for (publish|subscription) to \"([^\"]*)\"(?: using queue \"([^\"]*)\")?", re.IGNORECASE
)


class NatsOptions(Protocol):
    """What settings say of it; files by path, several servers in ``url`` by comma."""

    @property
    def url(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...
    @property
    def token(self) -> str | None: ...
    @property
    def credentials(self) -> str | None: ...
    @property
    def tls_ca(self) -> str | None: ...
    @property
    def tls_cert(self) -> str | None: ...
    @property
    def tls_key(self) -> str | None: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def domain(self) -> str | None: ...
    @property
    def inbox_prefix(self) -> str | None: ...


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Of these files; without ``ca`` the system's authorities count. None without any.

    Raises Misconfigured, naming the setting whose file is none.
    """
    if not ca and not cert:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, OSError) as error:
        raise Misconfigured(f"nats.tls_ca = {ca!r} holds no certificates that can be read: {error}") from error
    if cert:
        try:
            context.load_cert_chain(cert, key)
        except (ssl.SSLError, OSError) as error:
            raise Misconfigured(f"nats.tls_cert = {cert!r}, nats.tls_key = {key!r}: no pair: {error}") from error
    return context


def credentials_option(path: str | Path) -> dict[str, str]:
    """nats-py's option for a credentials file (user JWT and seed) or a file that holds an NKey's seed alone.

    Raises Misconfigured for any other file: nats-py would look for the JWT in it for ever.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Misconfigured(f"nats.credentials = {str(path)!r} cannot be read: {error.strerror}") from error
    if _USER_JWT in content and b"-----BEGIN USER NKEY SEED-----" in content:
        return {"user_credentials": str(path)}
    if _SEED.fullmatch(content):
        return {"nkeys_seed": str(path)}
    raise Misconfigured(
        f"nats.credentials = {str(path)!r}: expected a credentials file (user JWT and seed) or a user's NKey seed"
    )


class Access(NamedTuple):
    """Where we connect to, and as whom; ``options`` are nats-py's, ``api`` is where JetStream is asked.

    ``tls_only``: we would rather not speak to these servers than speak in the clear.
    """

    servers: list[str]
    user: str | None
    options: dict[str, Any]
    tls_only: bool
    api: str


def access(
    url: str | Sequence[str],
    *,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    credentials: str | Path | None = None,
    tls: ssl.SSLContext | None = None,
    tls_hostname: str | None = None,
    domain: str | None = None,
) -> Access:
    """Whoever is not named here is named in the address. Raises Misconfigured."""
    addresses, *named = servers(url)
    if user is None and token is None and credentials is None:
        user, password, token = named
    options = {"user": user, "password": password, "token": token, "tls": tls, "tls_hostname": tls_hostname}
    if credentials is not None:
        options |= credentials_option(credentials)
    tls_only = tls is not None or any(address.startswith("tls://") for address in addresses)
    return Access(addresses, user, options, tls_only, f"$JS.{domain}.API" if domain else "$JS.API")


class Servers(NamedTuple):
    """Addresses, and who logs in there: ``user`` and ``password``, or ``token``, or nobody."""

    addresses: list[str]
    user: str | None
    password: str | None
    token: str | None


def servers(url: str | Sequence[str]) -> Servers:
    """Of one or several addresses, separated by commas; a lone name before the @ is a token.

    What stands before the @ is taken out: nats-py would not decode ``%40``, and would not say it to the servers of a
    cluster that it learns of. Raises Misconfigured for an address that is none, or names somebody else than the first.
    """
    parts = [part.strip() for part in url.split(",")] if isinstance(url, str) else list(url)
    addresses, people = [], set()
    for part in parts:
        address, *who = _address(part)
        addresses.append(address)
        people.add(tuple(who))
    if len(people) > 1:
        raise Misconfigured("nats.url: expected the same user at each address")
    name, password = people.pop()
    if password is None:
        return Servers(addresses, None, None, unquote(name) if name else None)
    return Servers(addresses, unquote(name or ""), unquote(password), None)


def _address(text: str) -> tuple[str, str | None, str | None]:
    try:
        split = urlsplit(text if "://" in text else f"nats://{text}")
        host, port = split.hostname or "", split.port or 4222
        if host:
            netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            return urlunsplit(split._replace(netloc=netloc)), split.username, split.password
    except ValueError:
        # Nothing of it is repeated: a password with a # or / in it looks like a port that is none.
        pass
    raise Misconfigured("nats.url: expected nats://host:4222; of a password, write #, /, ? and @ as %23 …")


def inbox_of(user: str | None) -> str:
    """Where answers come: below the user's name, so that permissions can keep one user out of another's answers."""
    if user is None:
        return INBOX
    try:
        return f"{INBOX}.{token(user)}"
    except InvalidSubject:
        return INBOX


class Violation(NamedTuple):
    """What the server did not permit; ``subject`` in lower case, as nats-py hands it on."""

    publish: bool
    subject: str
    queue: str


def violation(error: Exception) -> Violation | None:
    match = _VIOLATION.search(str(error))
    if match is None:
        return None
    return Violation(match[1].lower() == "publish", match[2].lower(), (match[3] or "").lower())
