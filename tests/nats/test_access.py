"""Who may come in, on real nats-servers: passwords, tokens, keys, JWTs, certificates. Settings from variables."""

import asyncio
import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme
from structlog.testing import capture_logs

from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.messages import PubAck
from nebengjek.bus.specs import StreamSpec
from nebengjek.errors import Misconfigured
from nebengjek.settings import load
from tests.servers import NatsServer, nats_server

pytestmark = pytest.mark.real

SECRET = "s3cret-w0rd"
NOT_KNOWN = r"Authorization Violation|a server hangs up on whom it does not let in"
"""The server's word may be lost when it hangs up."""


def broker_of(url: str, **variables: str) -> JetStreamBroker:
    """As a pod makes it: everything from the environment."""
    env = {"NATS_URL": url, "NEBENGJEK__NATS__CONNECT_TIMEOUT": "1"}
    env |= {f"NEBENGJEK__NATS__{name.upper()}": value for name, value in variables.items()}
    return JetStreamBroker.from_settings(load(env=env).nats, name="pod-1")


async def works(broker: JetStreamBroker) -> None:
    await broker.connect()
    try:
        assert broker.status is ConnectionStatus.UP, broker.connection().error
        await broker.ensure_stream(StreamSpec(name="S", subjects=("s.>",)))
        assert isinstance(await asyncio.wait_for(broker.submit("s.a", b"x", {}), 5), PubAck)
        assert broker.connection().error is None
    finally:
        await broker.close()


async def is_kept_out(broker: JetStreamBroker, because: str) -> None:
    """It is not let in, says why for people, and goes on trying; no log line has a secret."""
    with capture_logs() as lines:
        await broker.connect()
        try:
            assert broker.status is ConnectionStatus.CONNECTING
            assert re.search(because, str(broker.connection().error))
        finally:
            await broker.close()
    assert "nats.away" in [line["event"] for line in lines]
    assert SECRET not in repr(lines)
    assert SECRET not in str(broker.connection())


# -- password, token


async def test_a_user_and_a_password() -> None:
    with nats_server(user="pod", password=SECRET) as server:
        await works(broker_of(server.url, user="pod", password=SECRET))
        await is_kept_out(broker_of(server.url, user="pod", password="another"), NOT_KNOWN)
        await is_kept_out(broker_of(server.url, user="nobody", password=SECRET), NOT_KNOWN)
        await is_kept_out(broker_of(server.url), NOT_KNOWN)


async def test_a_password_in_the_address_is_not_shown() -> None:
    password = f"{SECRET}/#@?:"
    with nats_server(user="pod", password=password) as server:
        url = server.url.replace("//", f"//pod:{SECRET}%2F%23%40%3F%3A@")
        broker = broker_of(f"{url},{url}")
        assert (SECRET in broker.where, broker.where) == (False, f"{server.url}, {server.url}")
        await works(broker)
        with pytest.raises(Misconfigured) as refused:
            broker_of(server.url.replace("//", f"//pod:{password}@"))
        assert SECRET not in str(refused.value)
        with pytest.raises(Misconfigured, match="the same user"):
            broker_of(f"{url},{server.url}")


async def test_a_token() -> None:
    with nats_server(access=f"authorization {{ token: {json.dumps(SECRET)} }}") as server:
        await works(broker_of(server.url, token=SECRET))
        await works(broker_of(server.url.replace("//", f"//{SECRET}@")))
        await is_kept_out(broker_of(server.url, token="another"), NOT_KNOWN)


# -- keys and JWTs


def new_key(prefix: int) -> tuple[bytes, str]:
    """(seed, public key)"""
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    return seed, nkeys.from_seed(bytearray(seed)).public_key.decode()


async def test_an_nkey(tmp_path: Path) -> None:
    seed, public = new_key(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "pod.nk").write_bytes(seed + b"\n")
    (tmp_path / "other.nk").write_bytes(new_key(nkeys.PREFIX_BYTE_USER)[0])
    with nats_server(access=f"authorization {{ users: [ {{ nkey: {public} }} ] }}") as server:
        await works(broker_of(server.url, credentials=str(tmp_path / "pod.nk")))
        await is_kept_out(broker_of(server.url, credentials=str(tmp_path / "other.nk")), NOT_KNOWN)


def jwt(claims: dict[str, Any], signer: bytes) -> str:
    """A NATS JWT, as nsc would make it."""
    pair = nkeys.from_seed(bytearray(signer))
    body = {"iat": int(time.time()), "iss": pair.public_key.decode(), **claims}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    parts = [_base64url(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
    signed = ".".join(parts)
    return f"{signed}.{_base64url(pair.sign(signed.encode()))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def credentials_file(user_jwt: str, seed: bytes) -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


async def test_a_jwt_in_a_credentials_file(tmp_path: Path) -> None:
    operator_seed, operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
    account_seed, account = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    user_seed, user = new_key(nkeys.PREFIX_BYTE_USER)
    stranger_seed, _ = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    limits = {"subs": -1, "conn": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "leaf": -1}
    limits |= {"mem_storage": 1 << 30, "disk_storage": 1 << 30, "streams": -1, "consumer": -1, "wildcards": True}
    account_claims = {"name": "A", "sub": account, "nats": {"type": "account", "version": 2, "limits": limits}}
    _, system = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    system_claims = {"name": "SYS", "sub": system, "nats": {"type": "account", "version": 2}}
    operator_jwt = jwt({"name": "O", "sub": operator, "nats": {"type": "operator", "version": 2}}, operator_seed)
    user_claims = {
        "name": "pod",
        "sub": user,
        "nats": {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1},
    }
    (tmp_path / "pod.creds").write_text(credentials_file(jwt(user_claims, account_seed), user_seed))
    (tmp_path / "forged.creds").write_text(credentials_file(jwt(user_claims, stranger_seed), user_seed))
    access = (
        f"operator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {system}\n"
        f"resolver_preload: {{ {account}: {jwt(account_claims, operator_seed)}, "
        f"{system}: {jwt(system_claims, operator_seed)} }}\n"
    )
    with nats_server(access=access) as server:
        await works(broker_of(server.url, credentials=str(tmp_path / "pod.creds")))
        await is_kept_out(broker_of(server.url, credentials=str(tmp_path / "forged.creds")), NOT_KNOWN)


@pytest.mark.parametrize("content", ["", "password", "-----BEGIN NATS USER JWT-----\nabc\n", "SU" + "A" * 10])
def test_a_credentials_file_that_is_none_is_refused_at_once(content: str, tmp_path: Path) -> None:
    (tmp_path / "pod.creds").write_text(content)
    with pytest.raises(Misconfigured, match=r"nats\.credentials = .* expected a credentials file"):
        broker_of("nats://127.0.0.1:1", credentials=str(tmp_path / "pod.creds"))


# -- TLS


class Authority:
    """Certificates as files of one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._made = trustme.CA()
        self._folder = folder
        self.file = str(folder / f"{name}.pem")
        self._made.cert_pem.write_to_path(self.file)

    def issue(self, name: str, **subject: Any) -> tuple[str, str]:
        """(certificate, key) for a host, an address or a person."""
        made = self._made.issue_cert(name, **subject)
        files = str(self._folder / f"{name}.crt"), str(self._folder / f"{name}.key")
        Path(files[0]).write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        made.private_key_pem.write_to_path(files[1])
        return files


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ca")


@contextmanager
def tls_server(
    authority: Authority, *, name: str = "127.0.0.1", more: str = "", access: str = ""
) -> Iterator[NatsServer]:
    certificate, key = authority.issue(name)
    tls = f"tls {{ cert_file: {json.dumps(certificate)}, key_file: {json.dumps(key)}, {more} }}"
    with nats_server(access=access, config=tls) as server:
        server.url = server.url.replace("nats://", "tls://")
        yield server


async def test_tls_with_an_authority_of_our_own(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    with tls_server(authority, access=f"authorization {{ user: pod, password: {SECRET} }}") as server:
        for url in (server.url, server.url.replace("tls://", "nats://")):
            await works(broker_of(url, tls_ca=authority.file, user="pod", password=SECRET))
        who = {"user": "pod", "password": SECRET}
        await is_kept_out(broker_of(server.url, tls_ca=other.file, **who), "CERTIFICATE_VERIFY_FAILED")
        await is_kept_out(broker_of(server.url, **who), "CERTIFICATE_VERIFY_FAILED")
        wrong_word = broker_of(server.url, tls_ca=authority.file, user="pod", password="another")
        await is_kept_out(wrong_word, NOT_KNOWN)


async def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    with tls_server(authority, name="nats.example") as server:
        await is_kept_out(broker_of(server.url, tls_ca=authority.file), "CERTIFICATE_VERIFY_FAILED")


async def test_a_client_certificate(authority: Authority, tmp_path: Path) -> None:
    mine = authority.issue("pod@nebengjek.example")
    forged = Authority(tmp_path, "other").issue("pod@nebengjek.example")
    verify = f"ca_file: {json.dumps(authority.file)}, verify: true"
    with tls_server(authority, more=verify) as server:
        with_mine = broker_of(server.url, tls_ca=authority.file, tls_cert=mine[0], tls_key=mine[1])
        await works(with_mine)
        for files in ({}, {"tls_cert": forged[0], "tls_key": forged[1]}):
            broker = broker_of(server.url, tls_ca=authority.file, **files)
            with capture_logs() as lines:
                await broker.connect()
                assert broker.status is not ConnectionStatus.UP
                # The server hangs up after the handshake; whoever comes back at once would do so a hundred times.
                tried = server.log_text().count("TLS handshake error")
                await asyncio.sleep(1.0)
                assert server.log_text().count("TLS handshake error") - tried <= 3
                await broker.close()
            assert "nats.connected" not in [line["event"] for line in lines]


async def test_a_client_certificate_says_who_we_are(authority: Authority) -> None:
    mine, other = authority.issue("match@nebengjek.example"), authority.issue("rides@nebengjek.example")
    more = f"ca_file: {json.dumps(authority.file)}, verify_and_map: true"
    access = "authorization { users: [ { user: match@nebengjek.example } ] }"
    with tls_server(authority, more=more, access=access) as server:
        await works(broker_of(server.url, tls_ca=authority.file, tls_cert=mine[0], tls_key=mine[1]))
        stranger = broker_of(server.url, tls_ca=authority.file, tls_cert=other[0], tls_key=other[1])
        await is_kept_out(stranger, NOT_KNOWN)


@pytest.mark.parametrize("way", ["address", "authority"])
async def test_nothing_is_said_in_the_clear_where_tls_was_wanted(way: str, authority: Authority) -> None:
    """A server, or somebody in front of it, that claims to know no TLS does not get the password."""
    said = b""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        writer.write(b'INFO {"server_id":"x","version":"2.14.6","max_payload":1048576,"headers":true}\r\n')
        said += await reader.read(4096)
        writer.close()

    listening = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    url, files = f"nats://127.0.0.1:{port}", {"tls_ca": authority.file}
    if way == "address":
        url, files = url.replace("nats://", "tls://"), {}
    await is_kept_out(broker_of(url, user="pod", password=SECRET, **files), "the server offers no TLS")
    listening.close()
    await listening.wait_closed()
    assert said == b""


def test_files_that_hold_no_certificates_are_named(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    one, other = authority.issue("one.example"), authority.issue("other.example")
    url = "tls://127.0.0.1:1"
    with pytest.raises(Misconfigured, match=r"nats\.tls_ca = .* holds no certificates"):
        broker_of(url, tls_ca=str(tmp_path / "empty.pem"))
    with pytest.raises(Misconfigured, match=r"nats\.tls_cert = .* no pair"):
        broker_of(url, tls_ca=authority.file, tls_cert=one[0], tls_key=other[1])
