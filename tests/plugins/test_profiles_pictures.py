"""What becomes of a picture, whatever was sent."""

from io import BytesIO

import pytest
from PIL import Image

from nebengjek.errors import Invalid
from nebengjek_plugins.profiles.pictures import LARGEST, SIZES, clean, thumbnails
from tests.plugins.images import picture, png_bomb

MAX_PIXELS = 25_000_000


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_kept_as_webp(kind: str) -> None:
    kept = opened(clean(picture(kind), MAX_PIXELS))
    assert (kept.format, kept.size) == ("WEBP", (300, 200))
    red, green, blue = kept.convert("RGB").getpixel((150, 100))  # type: ignore[misc]
    assert red > 240 > 20 > max(green, blue)


def test_what_the_camera_wrote_is_gone_and_the_picture_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    exif[0x010F] = "Camera of Budi"
    exif.get_ifd(0x8825)[1] = "S"  # where it was
    kept = opened(clean(picture(size=(300, 200), exif=exif), MAX_PIXELS))
    assert kept.size == (200, 300)
    assert not dict(kept.getexif())
    assert not {"exif", "xmp", "icc_profile"} & set(kept.info)


def test_a_large_one_is_made_smaller_and_a_transparent_one_stays_so() -> None:
    assert opened(clean(picture(size=(4000, 1000)), MAX_PIXELS)).size == (LARGEST, LARGEST // 4)
    out = BytesIO()
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(out, "PNG")
    assert opened(clean(out.getvalue(), MAX_PIXELS)).mode == "RGBA"


def test_thumbnails_are_squares() -> None:
    small = thumbnails(clean(picture(), MAX_PIXELS))
    assert {size: opened(data).size for size, data in small.items()} == {size: (size, size) for size in SIZES}
    assert {opened(data).format for data in small.values()} == {"WEBP"}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not a picture at all", id="text"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', id="svg"),
        pytest.param(picture("GIF"), id="gif"),
        pytest.param(picture()[:400], id="truncated jpeg"),
        pytest.param(picture("PNG")[:60], id="truncated png"),
        pytest.param(picture("WEBP")[:40], id="truncated webp"),
        pytest.param(png_bomb(), id="png bomb"),
        pytest.param(png_bomb(9_000, 9_000), id="smaller png bomb"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\xff" * 100, id="png head only"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0", id="postscript"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        clean(data, MAX_PIXELS)
    assert caught.value.code == "INVALID_IMAGE"


def test_the_limit_of_pixels_is_exact() -> None:
    assert clean(picture(size=(100, 100)), 10_000)
    with pytest.raises(Invalid, match="100 x 101"):
        clean(picture(size=(100, 101)), 10_000)
