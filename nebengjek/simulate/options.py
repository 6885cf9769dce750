"""Every choice that ``nebengjek demo`` and ``nebengjek simulate`` offer, with its default and its range."""

from pathlib import Path

from msgspec import Struct

from nebengjek.errors import Misconfigured

FRAMES_PER_SECOND = 16.0
"""Pings a phone sends in a real second at most: the server takes 20 frames a socket, and commands need room too."""
MAX_NOISE_M = 10.0
"""Above it the noise itself would lengthen the paths by a share of the 1 % that the bill is checked to."""
MAX_SILENCE_SECONDS = 45.0
"""Simulated seconds between two pings at most: after 60 the server takes the other phone's path instead."""


class SimulationOptions(Struct, frozen=True, kw_only=True):
    """What ``nebengjek simulate`` does; ``check`` says what is out of range.

    ``url``: a running server, else one is started for the run. ``limit``: trips at most, 0 = all of the file.
    ``speed``: simulated seconds in a real one. ``ping_seconds``: simulated seconds between two points of a moving
    phone. ``noise_m``: the radius that holds 68 % of the GPS errors, as phones report their accuracy. ``accept``:
    the share of proposals that drivers accept. ``cancel``: the share of rides that one side cancels before the
    pick-up. ``json``: where the whole result goes. ``seed`` decides what people do, not who they are: phone
    numbers and plates are new in every run, so that a server can be used again.
    """

    trips: Path
    url: str | None = None
    limit: int = 500
    drivers: int = 200
    speed: float = 60.0
    ping_seconds: float = 4.0
    seed: int = 1
    json: Path | None = None
    noise_m: float = 5.0
    accept: float = 0.9
    cancel: float = 0.02

    def check(self) -> None:
        """Raises Misconfigured, naming the option and what was expected."""
        _range("--limit", self.limit, 0, 1_000_000)
        _range("--drivers", self.drivers, 1, 20_000)
        _range("--accept", self.accept, 0.05, 1)
        _range("--cancel", self.cancel, 0, 1)
        check_pace(self.speed, self.ping_seconds, self.noise_m)


class DemoOptions(Struct, frozen=True, kw_only=True):
    """What ``nebengjek demo`` does: everybody accepts, nobody cancels, some pay at the second try."""

    url: str | None = None
    drivers: int = 20
    passengers: int = 25
    speed: float = 90.0
    ping_seconds: float = 6.0
    seed: int = 1
    json: Path | None = None
    noise_m: float = 5.0

    def check(self) -> None:
        """Raises Misconfigured, naming the option and what was expected."""
        _range("--drivers", self.drivers, 1, 1000)
        _range("--passengers", self.passengers, 1, 1000)
        check_pace(self.speed, self.ping_seconds, self.noise_m)


def check_pace(speed: float, ping_seconds: float, noise_m: float) -> None:
    """Raises Misconfigured for a pace that the server would rightly refuse or bill wrongly."""
    _range("--speed", speed, 1, FRAMES_PER_SECOND * MAX_SILENCE_SECONDS)
    _range("--ping-seconds", ping_seconds, 1, MAX_SILENCE_SECONDS)
    _range("--noise-m", noise_m, 0, MAX_NOISE_M)


def effective_ping_seconds(speed: float, ping_seconds: float) -> float:
    """``ping_seconds``, or as many more as keep a phone below the server's limit of frames a second."""
    return max(ping_seconds, speed / FRAMES_PER_SECOND)


def _range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise Misconfigured(f"{name} is {value:g}, expected {low:g} to {high:g}")
