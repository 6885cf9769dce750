"""``[plugin.profiles]`` of the profile."""

from typing import Annotated

from msgspec import Meta, Struct


class ProfilesSettings(Struct, frozen=True, kw_only=True):
    """``store``: where pictures are kept, a folder, or ``s3://bucket/prefix`` (also ``gs://``, ``az://``).

    An S3's credentials come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``).
    """

    store: str = "avatars"
    store_endpoint: str | None = None
    """Of an S3 that is not Amazon's: ``http://127.0.0.1:9000``."""
    store_region: str = "us-east-1"
    store_timeout: Annotated[float, Meta(gt=0, le=600)] = 10
    """Seconds that the store may take for one file."""
    max_pixels: Annotated[int, Meta(ge=64 * 64, le=200_000_000)] = 25_000_000
    """Width times height of an upload; a decoded pixel takes four bytes."""
    uploads_per_hour: Annotated[int, Meta(ge=1, le=100_000)] = 30
    workers: Annotated[int, Meta(ge=1, le=64)] = 2
    """Pictures that are worked on at once."""
    cache_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 300
