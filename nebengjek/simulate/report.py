"""What a run shows: a bar while it goes on, a table of figures and checks at its end, all of it as JSON."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from nebengjek.contracts.rides import RideDetails
from nebengjek.simulate.checks import Evidence, Result
from nebengjek.simulate.people import Outcome
from nebengjek.simulate.phone import Tally
from nebengjek.simulate.server import Streams

LINE_SECONDS = 10.0
SHOWN_OFFENDERS = 10


class Figures(Struct, frozen=True, kw_only=True):
    """Sums and percentiles of a run. Waits are simulated seconds, money is rupiah, distances are kilometres."""

    trips: int
    completed: int
    cancelled: int
    unfinished: int
    searches: int
    declined_payments: int
    matched_ms_p50: float
    matched_ms_p95: float
    wait_seconds_p50: float
    wait_seconds_p95: float
    pickup_km: float
    pickup_km_mean: float
    driven_km: float
    billed_km: float
    fares: int
    asked: int
    payouts: int
    fees: int
    seconds: float
    speed: float
    points: int
    points_per_second: float
    frames_heard: int
    commands: int
    commands_repeated: int
    points_unconfirmed: int
    reconnects: int


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def figures_of(evidence: Evidence, tally: Tally, *, seconds: float, speed: float) -> Figures:
    outcomes = evidence.outcomes
    paid = [one for one in outcomes if one.state == "paid"]
    rides: list[RideDetails] = [evidence.rides[one.ride_id] for one in paid if one.ride_id in evidence.rides]
    picked_up = [one for one in outcomes if one.started_at]
    matched = [one.matched_seconds_real * 1000 for one in outcomes if one.matched_at]
    waits = [one.started_at - one.asked_at for one in picked_up]
    pickups = [one.pickup_km for one in picked_up]
    return Figures(
        trips=len(outcomes),
        completed=len(paid),
        cancelled=sum(one.state == "cancelled" for one in outcomes),
        unfinished=sum(one.state not in ("paid", "cancelled") for one in outcomes),
        searches=sum(one.searches for one in outcomes),
        declined_payments=sum(one.refused_payments for one in outcomes),
        matched_ms_p50=percentile(matched, 50),
        matched_ms_p95=percentile(matched, 95),
        wait_seconds_p50=percentile(waits, 50),
        wait_seconds_p95=percentile(waits, 95),
        pickup_km=sum(pickups),
        pickup_km_mean=sum(pickups) / max(1, len(pickups)),
        driven_km=sum(one.true_km for one in paid),
        billed_km=sum(ride.distance_km for ride in rides),
        fares=sum(ride.total_cost or 0 for ride in rides),
        asked=sum(ride.adjusted_cost or 0 for ride in rides),
        payouts=sum(ride.driver_payout or 0 for ride in rides),
        fees=sum(ride.admin_fee or 0 for ride in rides),
        seconds=seconds,
        speed=speed,
        points=tally.points,
        points_per_second=tally.points / max(0.001, seconds),
        frames_heard=tally.frames_in,
        commands=tally.commands,
        commands_repeated=tally.repeated,
        points_unconfirmed=tally.unconfirmed,
        reconnects=tally.drops,
    )


def show(console: Console, title: str, figures: Figures, streams: Streams, results: Sequence[Result]) -> None:
    """The table of figures, then the checks, then who offends."""
    console.print(_figures_table(title, figures, streams))
    console.print(_checks_table(results))
    for result in results:
        for offender in result.offenders[:SHOWN_OFFENDERS]:
            console.print(f"  {result.name}: {offender}", style="red", markup=False, highlight=False)
        if len(result.offenders) > SHOWN_OFFENDERS:
            console.print(f"  … and {len(result.offenders) - SHOWN_OFFENDERS} more (--json has all)", style="red")


def rupiah(amount: int) -> str:
    """``Rp 1.234.567``"""
    return "Rp " + f"{amount:,}".replace(",", ".")


def minutes(seconds: float) -> str:
    """``3:05`` (minutes and seconds)"""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _figures_table(title: str, figures: Figures, streams: Streams) -> Table:
    table = Table(title=title, show_header=False, title_justify="left", min_width=64)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in _figure_rows(figures):
        table.add_row(name, value)
    table.add_section()
    if streams.refused is not None:
        table.add_row("messages per stream, dead letters", f"not shown: {streams.refused}")
        return table
    for name, count in sorted(streams.messages.items()):
        table.add_row(f"messages in {name}", f"{count:,}")
    table.add_row("dead letters", f"{streams.dead_letters:,}", style="red" if streams.dead_letters else None)
    return table


def _figure_rows(figures: Figures) -> list[tuple[str, str]]:
    f = figures
    rows = [
        ("rides completed", f"{f.completed:,} of {f.trips:,}"),
        ("cancelled before the pick-up", f"{f.cancelled:,}"),
        ("searches", f"{f.searches:,}"),
        ("matched after, p50 / p95 (real)", f"{f.matched_ms_p50:,.0f} / {f.matched_ms_p95:,.0f} ms"),
        ("wait for the car, p50 / p95 (simulated)", f"{minutes(f.wait_seconds_p50)} / {minutes(f.wait_seconds_p95)}"),
        ("way to the pick-up, mean / total", f"{f.pickup_km_mean:.2f} / {f.pickup_km:,.1f} km"),
        ("distance driven / billed", f"{f.driven_km:,.2f} / {f.billed_km:,.2f} km"),
        ("fares by the meter", rupiah(f.fares)),
        ("fares asked for", rupiah(f.asked)),
        ("payouts to drivers", rupiah(f.payouts)),
        ("fees", rupiah(f.fees)),
        ("payments declined, then paid", f"{f.declined_payments:,}"),
        ("points reported", f"{f.points:,} ({f.points_per_second:,.0f} a second)"),
        ("frames heard", f"{f.frames_heard:,}"),
        ("time", f"{f.seconds:.1f} s at {f.speed:g} x"),
    ]
    if f.unfinished:
        rows.insert(2, ("unfinished", f"{f.unfinished:,}"))
    if f.reconnects or f.commands_repeated or f.points_unconfirmed:
        trouble = f"{f.reconnects:,} / {f.commands_repeated:,} / {f.points_unconfirmed:,}"
        rows.append(("reconnects / commands repeated / points unconfirmed", trouble))
    return rows


def _checks_table(results: Sequence[Result]) -> Table:
    table = Table(show_header=True, min_width=64)
    table.add_column("check", style="bold")
    table.add_column("looked at", justify="right")
    table.add_column("result", justify="right")
    for result in results:
        verdict = "[green]ok[/]" if result.passed else f"[red]{len(result.offenders):,} wrong[/]"
        verdict = "not shown" if result.skipped else verdict
        table.add_row(result.name, f"{result.looked_at:,}", verdict)
    return table


def write_json(
    path: Path,
    options: Struct,
    figures: Figures,
    streams: Streams,
    results: Sequence[Result],
    evidence: Evidence,
) -> None:
    """Everything: options, figures, checks with all offenders, streams, and each trip with its ride."""
    body: dict[str, Any] = {
        "passed": all(result.passed for result in results),
        "options": msgspec.to_builtins(options, enc_hook=str),
        "figures": msgspec.to_builtins(figures),
        "streams": msgspec.to_builtins(streams),
        "checks": [{"passed": result.passed, **msgspec.to_builtins(result)} for result in results],
        "trips": [
            {**msgspec.to_builtins(one), "ride": msgspec.to_builtins(evidence.rides.get(one.ride_id))}
            for one in evidence.outcomes
        ],
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n")


class Display:
    """A bar in a terminal; elsewhere one line every ten seconds."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._started = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._task: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        columns = (
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._progress = progress
            self._task = progress.add_task("rides", total=self._total, rate="", status="")
            yield
        self._progress = None

    def update(self, done: int, status: str) -> None:
        """``done`` trips have ended; ``status`` is shown beside the bar."""
        elapsed = time.monotonic() - self._started
        rate = done / elapsed if elapsed else 0.0
        if self._progress is not None:
            self._progress.update(self._task, completed=done, rate=f"{rate:.1f}/s", status=status)
        elif not self._console.is_terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            left = f"{(self._total - done) / rate:.0f} s left" if rate else "no ride has ended yet"
            self._console.print(f"{done}/{self._total} rides, {rate:.1f}/s, {left}; {status}", highlight=False)

    def tell(self, line: str) -> None:
        """A line above the bar; nothing where there is no terminal."""
        if self._progress is not None:
            self._progress.console.print(line, highlight=False)


def waiting_and_riding(outcomes: Sequence[Outcome]) -> str:
    """``12 waiting, 30 riding``"""
    waiting = sum(one.state == "waiting" and one.asked_at > 0 for one in outcomes)
    riding = sum(one.state == "riding" for one in outcomes)
    return f"{waiting} waiting, {riding} riding"
