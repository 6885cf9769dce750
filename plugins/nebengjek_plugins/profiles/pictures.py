"""What is done to a picture: pure functions, for a thread, because each takes tens of milliseconds."""

import struct
from io import BytesIO

from PIL import Image, ImageOps

from nebengjek.errors import Invalid

KINDS = ("JPEG", "PNG", "WEBP")
LARGEST = 1024
"""Pixels of the longer side of what is kept: twice the largest thumbnail. Writing more is what an upload waits for."""
SIZES = (64, 128, 512)

# What Pillow raises for bytes that are no picture, or not all of one.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def clean(data: bytes, max_pixels: int) -> bytes:
    """The picture as WebP, upright and without anything that was written into it beside its pixels.

    The content decides what it is, whatever its name says. Raises Invalid (INVALID_IMAGE): no JPEG, PNG or WebP,
    damaged, or of more than ``max_pixels``, which is found out before it is decoded.
    """
    try:
        with Image.open(BytesIO(data), formats=KINDS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Invalid(f"a picture of {width} x {height} pixels is too large", code="INVALID_IMAGE")
            # A JPEG is decoded at an eighth, a quarter or a half of its size where that is enough.
            image.draft(None, (LARGEST, LARGEST))
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((LARGEST, LARGEST))
            return _webp(upright)
    except _BROKEN as error:
        raise Invalid("this is no JPEG, PNG or WebP, or it is damaged", code="INVALID_IMAGE") from error


def thumbnails(picture: bytes) -> dict[int, bytes]:
    """Squares cut out of the middle, by the length of their sides."""
    with Image.open(BytesIO(picture), formats=("WEBP",)) as image:
        return {size: _webp(ImageOps.fit(image, (size, size))) for size in SIZES}


def _webp(image: Image.Image) -> bytes:
    mode = "RGBA" if image.has_transparency_data else "RGB"
    out = BytesIO()
    # Method 1 takes half the time of 3 and more; the files are hardly larger.
    image.convert(mode).save(out, "WEBP", quality=82, method=1, exif=b"", xmp=b"", icc_profile=b"")
    return out.getvalue()
