"""What happens to an event's bytes on their way: long ones are compressed, those of sensitive types are sealed.

Both are said in the header ``Content-Encoding``, in the order in which they were done, so pods with other settings can
read them as long as they have the key.
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from typing import Any

from nebengjek.bus.messages import MAX_PAYLOAD
from nebengjek.errors import Misconfigured

CONTENT_ENCODING = "Content-Encoding"
COMPRESSED, SEALED = "zlib", "aes-gcm"
KEY_BYTES = 32
_NAME_BYTES, _NONCE_BYTES = 4, 12
MAX_INFLATED = 16 * MAX_PAYLOAD
"""A message that would become longer than this is not one of ours."""


class Unreadable(Exception):
    """An encoding that is not known, a key that is not here, or bytes that were changed on the way."""


class Payloads:
    """``compress_above``: bytes from which on a payload is compressed, 0 = never.

    ``keys``: 32 bytes each; the first seals, all open (AES-256-GCM, NIST SP 800-38D, with random nonces of 96 bits).
    Without keys what is sensitive is sent as it is. Raises Misconfigured for a key of another length.
    """

    def __init__(self, *, compress_above: int = 0, keys: Sequence[bytes] = ()) -> None:
        self.compress_above = compress_above or 1 << 60
        self.seals = bool(keys)
        self._ciphers: dict[bytes, Any] = {}
        for key in keys:
            if len(key) != KEY_BYTES:
                raise Misconfigured(f"nats.event_keys: a key has {len(key)} bytes, expected {KEY_BYTES}")
            self._ciphers[_name(key)] = _cipher(key)
        self._sealing = _name(keys[0]) if keys else b""

    def wrap(self, data: bytes, subject: str, *, seal: bool) -> tuple[bytes, str]:
        """The bytes to send and what was done to them. What is sealed opens on the same subject only."""
        done = []
        if len(data) > self.compress_above:
            data = zlib.compress(data)
            done.append(COMPRESSED)
        if seal:
            nonce = os.urandom(_NONCE_BYTES)
            data = self._sealing + nonce + self._ciphers[self._sealing].encrypt(nonce, data, subject.encode())
            done.append(SEALED)
        return data, ", ".join(done)

    def unwrap(self, data: bytes, subject: str, encoding: str) -> bytes:
        """Raises Unreadable."""
        for step in reversed(encoding.split(", ")):
            if step == SEALED:
                data = self._open(data, subject)
            elif step == COMPRESSED:
                data = _inflate(data)
            else:
                raise Unreadable(f"the encoding {step[:32]!r} is not known")
        return data

    def _open(self, data: bytes, subject: str) -> bytes:
        name, nonce = data[:_NAME_BYTES], data[_NAME_BYTES : _NAME_BYTES + _NONCE_BYTES]
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise Unreadable(f"sealed with the key {name.hex()}, which nats.event_keys does not have")
        # With a cipher the library is there.
        from cryptography.exceptions import InvalidTag

        try:
            opened: bytes = cipher.decrypt(nonce, data[_NAME_BYTES + _NONCE_BYTES :], subject.encode())
        except (InvalidTag, ValueError) as error:
            raise Unreadable("sealed for another subject, or changed on the way") from error
        return opened


def _cipher(key: bytes) -> Any:
    try:
        # Only who seals needs the library.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise Misconfigured("nats.event_keys: sealing needs the extra: pip install 'nebengjek[sealed]'") from error
    return AESGCM(key)


def _name(key: bytes) -> bytes:
    """Which key it was, without saying the key."""
    return hashlib.sha256(b"nebengjek event key" + key).digest()[:_NAME_BYTES]


def _inflate(data: bytes) -> bytes:
    inflating = zlib.decompressobj()
    try:
        inflated = inflating.decompress(data, MAX_INFLATED)
    except zlib.error as error:
        raise Unreadable(f"not compressed as it says: {error}") from error
    if inflating.unconsumed_tail:
        raise Unreadable(f"longer than {MAX_INFLATED} bytes when it is inflated")
    return inflated
