"""Pictures for tests of uploads, good and bad."""

import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image

from tests.flows.world import Phone


def picture(kind: str = "JPEG", size: tuple[int, int] = (300, 200), colour: str = "red", **options: Any) -> bytes:
    out = BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **options)
    return out.getvalue()


def png_bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A few bytes that say they are two and a half thousand million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def upload(phone: Phone, data: bytes, name: str = "me.jpg", kind: str = "image/jpeg") -> Any:
    """The answer to an upload, whatever it is."""
    form = {"file": (name, data, kind)}
    return await phone.world.http.put("/users/me/avatar", files=form, headers=phone.bearer)
