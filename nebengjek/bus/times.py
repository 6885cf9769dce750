"""Durations and moments as JetStream writes them: nanoseconds, and RFC 3339 in UTC."""

from datetime import UTC, datetime


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def seconds(nanoseconds: int) -> float:
    return nanoseconds / 1_000_000_000


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
