"""A TOML file and the environment, read into Structs of sections; every mistake is named by its key.

Mechanism only: which settings there are is nebengjek/settings.py.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from nebengjek.errors import Misconfigured


class Section(Struct, frozen=True, kw_only=True):
    """A table of the file: ``[section]``."""


class Given(NamedTuple):
    """A value as somebody wrote it, and where: ``profile …``, a file's path or a variable's name."""

    value: Any
    origin: str
    is_text: bool = False


def keys_of(section: type[Struct], prefix: str = "") -> dict[str, Any]:
    """Dotted name of every setting below ``section`` and its type; a field of type ``dict`` is open and left out."""
    keys: dict[str, Any] = {}
    for item in msgspec.structs.fields(section):
        if isinstance(item.type, type) and issubclass(item.type, Section):
            keys |= keys_of(item.type, f"{prefix}{item.name}.")
        elif get_origin(item.type) is not dict:
            keys[prefix + item.name] = item.type
    return keys


def hints(kind: Any) -> dict[str, Any]:
    """``Meta(extra={"secret": True})`` and the like: ``secret``, ``url``, ``size``."""
    if get_origin(kind) is not Annotated:
        return {}
    metas = [item for item in get_args(kind)[1:] if isinstance(item, Meta)]
    return {name: value for meta in metas for name, value in (meta.extra or {}).items()}


class Source:
    """Reads a ``root`` Struct. ``names``: variables besides ``prefix``; ``open_table``: holds tables of anything."""

    def __init__(self, root: type[Struct], *, prefix: str, names: Mapping[str, str], open_table: str) -> None:
        self.keys = keys_of(root)
        self._root = root
        self._prefix = prefix
        self._names = names
        self._open = open_table

    def variable(self, key: str) -> str:
        """``NEBENGJEK__MATCH__RADIUS_KM`` for ``match.radius_km``."""
        return self._prefix + key.upper().replace(".", "__")

    def read(self, path: Path | None, env: Mapping[str, str]) -> dict[str, Given]:
        """What was written where, by dotted key, the winner only: file, then names, then prefixed variables.

        Raises Misconfigured with a line for each key that there is not, and for a file that cannot be read.
        """
        problems: list[str] = []
        found: dict[str, Given] = {}
        if path is not None:
            for key, value in self._leaves(_read_toml(path), path, problems):
                found[key] = Given(value, str(path))
        for name, key in self._names.items():
            # Compose files hand on ${REDIS_URL:-}: empty means not set.
            if env.get(name):
                found[key] = Given(env[name], name, True)
        for name, text in env.items():
            # One underscore is not ours to judge: orchestrators set NEBENGJEK_PORT for a service of that name.
            if name.startswith(self._prefix):
                key = name[len(self._prefix) :].lower().replace("__", ".")
                if key in self.keys or self._is_open(key):
                    found[key] = Given(text, name, True)
                else:
                    closest = self._closest(key)
                    problems.append(_unknown(name, self.variable(closest) if closest else ""))
        if problems:
            raise Misconfigured("\n".join(problems))
        return found

    def build(self, found: Mapping[str, Given]) -> Any:
        """A ``root`` of these values. Raises Misconfigured with a line for each value that does not fit its type."""
        problems: list[str] = []
        sections: dict[str, dict[str, Any]] = {"": {}}
        for key, item in found.items():
            section, _, name = key.rpartition(".")
            if self._is_open(key):
                table = sections[""].setdefault(self._open, {}).setdefault(section.partition(".")[2], {})
                table[name] = _guess(item.value) if item.is_text else item.value
                continue
            try:
                sections.setdefault(section, {})[name] = _convert(item, self.keys[key])
            except ValueError as error:
                problems.append(_bad(key, item, str(error), self.keys[key]))
        if problems:
            raise Misconfigured("\n".join(problems))
        kinds = {item.name: item.type for item in msgspec.structs.fields(self._root)}
        top = sections.pop("")
        return self._root(**top, **{name: kinds[name](**values) for name, values in sections.items()})

    def _leaves(self, document: dict[str, Any], path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
        tables = {key.partition(".")[0] for key in self.keys if "." in key} | {self._open}
        for name, value in document.items():
            if name in self.keys:
                yield name, value
            elif name in tables and not isinstance(value, dict):
                problems.append(f"{name} in {path}: expected a table, [{name}]")
            elif name == self._open:
                yield from self._open_leaves(value, path, problems)
            else:
                inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {}
                for key, item in (inner or ({} if name in tables else {name: value})).items():
                    if key in self.keys:
                        yield key, item
                    else:
                        problems.append(_unknown(f"{key} in {path}", self._closest(key)))

    def _open_leaves(self, tables: dict[str, Any], path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
        for table, values in tables.items():
            if not isinstance(values, dict):
                problems.append(f"{self._open}.{table} in {path}: expected a table, [{self._open}.{table}]")
                continue
            yield from ((f"{self._open}.{table}.{name}", value) for name, value in values.items())

    def _is_open(self, key: str) -> bool:
        table, _, rest = key.partition(".")
        return table == self._open and re.fullmatch(r"[^.]+\.[^.]+", rest) is not None

    def _closest(self, key: str) -> str:
        found: Sequence[str] = difflib.get_close_matches(key, self.keys, n=1, cutoff=0.6)
        if not found:
            last = key.rpartition(".")[2]
            found = [known for known in self.keys if known.rpartition(".")[2] == last]
        return found[0] if found else ""


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Misconfigured(f"there is no settings file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the settings file {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"the settings file {path} is not TOML: {error}") from error


def _unknown(name: str, closest: str) -> str:
    return f"{name}: there is no such setting" + (f"; did you mean {closest}?" if closest else "")


def _convert(item: Given, kind: Any) -> Any:
    value = item.value
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if "size" in hints(kind) and isinstance(value, str) and value:
        value = size(value)
    if item.is_text and get_origin(plain) is tuple:
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif value == "" and type(None) in get_args(plain):
        return None
    return msgspec.convert(value, kind, strict=not item.is_text)


def _bad(key: str, item: Given, problem: str, kind: Any) -> str:
    shown = "" if hints(kind).keys() & {"secret", "url"} else f" = {item.value!r}"
    expected = problem.partition(" - at `")[0]
    return f"{key}{shown} ({item.origin}): {expected[0].lower()}{expected[1:]}"


def _guess(text: str) -> Any:
    """An open table's value from the environment: what TOML would read, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?B)?|B)?", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes: ``1048576``, ``1GB`` and ``1GiB`` (1024³), ``1G`` (1000³), as nats-server reads them.

    Raises ValueError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected a size such as 512MB or 1GB")
    number, unit, binary = match.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def size_text(size: float) -> str:
    """``1.5 MiB``"""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
