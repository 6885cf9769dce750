"""Who is near: an index of places on the sphere that answers nearest-k from the cells around, never from all.

The sphere is cut into rows of one cell's height, each row into as many columns as fit its length, so that cells
are about ``CELL_KM`` wide everywhere: the antimeridian is a row's seam like any other, a pole a row of few cells.
"""

import math
from collections.abc import Callable, Iterator
from heapq import nsmallest
from operator import itemgetter
from typing import Generic, TypeVar

from nebengjek.contracts.geo import EARTH_RADIUS_KM

CELL_KM = 1.0
_ROW = math.degrees(CELL_KM / EARTH_RADIUS_KM)
_ROWS = math.ceil(180 / _ROW)
_RADIANS = math.pi / 180

V = TypeVar("V")


class Entry(Generic[V]):
    """Something at a place."""

    __slots__ = ("cell", "cosine", "id", "latitude", "longitude", "value")

    def __init__(self, id: str, latitude: float, longitude: float, value: V) -> None:
        self.id = id
        self.value = value
        self.move(latitude, longitude)

    def move(self, latitude: float, longitude: float) -> None:
        self.latitude = latitude
        self.longitude = longitude
        self.cosine = math.cos(latitude * _RADIANS)
        row = _row(latitude)
        self.cell = (row, _column(longitude, _columns(row)))


class Grid(Generic[V]):
    """Entries by id. ``examined`` counts the entries that searches have looked at, ``cells_visited`` the cells."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry[V]] = {}
        self.examined = 0
        self.cells_visited = 0
        self._cells: dict[tuple[int, int], dict[str, Entry[V]]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, id: str, latitude: float, longitude: float, value: V) -> None:
        self.remove(id)
        entry = Entry(id, latitude, longitude, value)
        self.entries[id] = entry
        self._cells.setdefault(entry.cell, {})[id] = entry

    def move(self, entry: Entry[V], latitude: float, longitude: float) -> None:
        before = entry.cell
        entry.move(latitude, longitude)
        if entry.cell != before:
            self._leave(before, entry.id)
            self._cells.setdefault(entry.cell, {})[entry.id] = entry

    def remove(self, id: str) -> None:
        entry = self.entries.pop(id, None)
        if entry is not None:
            self._leave(entry.cell, id)

    def _leave(self, cell: tuple[int, int], id: str) -> None:
        inside = self._cells[cell]
        del inside[id]
        if not inside:
            del self._cells[cell]

    def nearest(
        self, latitude: float, longitude: float, radius_km: float, limit: int, fits: Callable[[Entry[V]], bool]
    ) -> list[tuple[float, Entry[V]]]:
        """Up to ``limit`` entries that fit, within the radius, as (km, entry), nearest first, ties by id.

        The circle grows from one cell to the radius and stops when it holds enough: no entry outside the cells
        that it touches is looked at, none twice.
        """
        found: list[tuple[float, str, Entry[V]]] = []
        seen: set[tuple[int, int]] = set()
        reach = min(radius_km, CELL_KM / 2)
        while True:
            for inside in self._touched(latitude, longitude, reach, seen):
                self._measure(latitude, longitude, radius_km, inside, fits, found)
            if reach >= radius_km or sum(1 for each in found if each[0] <= reach) >= limit:
                break
            reach = min(radius_km, reach * 2)
        return [(km, entry) for km, _, entry in nsmallest(limit, found, key=itemgetter(0, 1))]

    def _measure(
        self,
        latitude: float,
        longitude: float,
        radius_km: float,
        inside: dict[str, Entry[V]],
        fits: Callable[[Entry[V]], bool],
        found: list[tuple[float, str, Entry[V]]],
    ) -> None:
        # contracts.geo.distance_km, with each entry's cosine kept: this is where a search spends its time.
        self.examined += len(inside)
        cosine = math.cos(latitude * _RADIANS)
        for entry in inside.values():
            half_lat = math.sin((entry.latitude - latitude) * _RADIANS / 2)
            half_lon = math.sin((entry.longitude - longitude) * _RADIANS / 2)
            h = half_lat * half_lat + cosine * entry.cosine * half_lon * half_lon
            km = 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))
            if km <= radius_km and fits(entry):
                found.append((km, entry.id, entry))

    def _touched(
        self, latitude: float, longitude: float, reach_km: float, seen: set[tuple[int, int]]
    ) -> Iterator[dict[str, Entry[V]]]:
        """The occupied cells that a circle touches and that were not seen yet."""
        span = math.degrees(reach_km / EARTH_RADIUS_KM) * (1 + 1e-9) + 1e-9  # never smaller by a rounding
        south, north = latitude - span, latitude + span
        width = _half_width(latitude, reach_km)
        rows = range(_row(max(south, -90.0)), _row(min(north, 90.0)) + 1)
        if len(rows) ** 2 > len(self._cells):
            # Few cells are occupied: ask them instead of every cell that could be.
            for cell, inside in list(self._cells.items()):
                if cell not in seen and cell[0] in rows and _within(cell, longitude, width):
                    self.cells_visited += 1
                    seen.add(cell)
                    yield inside
            return
        for row in rows:
            columns = _columns(row)
            first, count = _range(longitude, width, columns)
            for step in range(count):
                cell = (row, (first + step) % columns)
                if cell not in seen:
                    self.cells_visited += 1
                    seen.add(cell)
                    if (occupied := self._cells.get(cell)) is not None:
                        yield occupied


def _row(latitude: float) -> int:
    return min(int((latitude + 90) / _ROW), _ROWS - 1)


def _columns(row: int) -> int:
    """How many cells of at least ``CELL_KM`` fit into the longest parallel of the row."""
    south, north = row * _ROW - 90, (row + 1) * _ROW - 90
    nearest_equator = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    length = 2 * math.pi * EARTH_RADIUS_KM * math.cos(nearest_equator * _RADIANS)
    return max(1, int(length / CELL_KM))


def _column(longitude: float, columns: int) -> int:
    return int((longitude + 180) / 360 * columns) % columns


def _half_width(latitude: float, reach_km: float) -> float:
    """Degrees of longitude that a circle reaches to either side; 180 when it holds a pole."""
    angle = reach_km / EARTH_RADIUS_KM
    cosine = math.cos(latitude * _RADIANS)
    if angle >= math.pi / 2 or math.sin(angle) >= cosine:
        return 180.0
    return math.degrees(math.asin(math.sin(angle) / cosine)) * (1 + 1e-9) + 1e-9


def _range(longitude: float, width: float, columns: int) -> tuple[int, int]:
    """The first column, and how many, that ``width`` degrees to either side touch."""
    first = math.floor((longitude - width + 180) / 360 * columns)
    last = math.floor((longitude + width + 180) / 360 * columns)
    return first % columns, min(last - first + 1, columns)


def _within(cell: tuple[int, int], longitude: float, width: float) -> bool:
    columns = _columns(cell[0])
    first, count = _range(longitude, width, columns)
    return (cell[1] - first) % columns < count
