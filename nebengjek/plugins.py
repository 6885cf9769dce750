"""Plugins: modules that the settings name by dotted path, and that the application can live without.

``plugins = ["nebengjek_plugins.chat:chat"]`` names a factory; ``[plugin.chat]`` holds its keyword arguments. What
it needs of the application it names as parameters: ``def chat(bus, database, clock, *, lines: int = 3) -> Module``.
"""

import difflib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from nebengjek.errors import Misconfigured
from nebengjek.module import Module

PARTS = ("bus", "clock", "database", "delivery", "state")
"""What a factory may ask for by naming it as a parameter; every other parameter is the settings' to fill."""

Factory = Callable[..., Module]


class PluginInfo(Struct, frozen=True, kw_only=True):
    """What a plugin is and takes. ``arguments``: name and default, ``required`` without one."""

    path: str
    name: str
    summary: str
    arguments: dict[str, str]


def load_plugins(
    paths: Sequence[str],
    tables: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, Any],
    *,
    taken: Collection[str] = (),
) -> list[Module]:
    """The modules of these plugins. ``parts``: what they may ask for by name; ``taken``: names of other modules.

    Raises Misconfigured naming the plugin or its argument, also for a table that belongs to no plugin.
    """
    names = {name_of(path): path for path in paths}
    if len(names) < len(paths):
        raise Misconfigured("plugins: two have the same name, or one is there twice")
    for table in tables:
        if table not in names:
            close = difflib.get_close_matches(table, names, n=1)
            hint = f"; did you mean plugin.{close[0]}?" if close else ""
            raise Misconfigured(f"plugin.{table}: plugins names no plugin called {table}{hint}")
    modules: list[Module] = []
    for name, path in names.items():
        module = _make(name, resolve(path), tables.get(name, {}), parts)
        if module.name in {*taken, *(other.name for other in modules)}:
            raise Misconfigured(f"plugins: {path} makes a module {module.name}, but there is one of that name")
        modules.append(module)
    return modules


def inspect_plugin(path: str, parts: Collection[str] = PARTS) -> PluginInfo:
    """What there is to know without making it. Raises Misconfigured when it cannot be imported."""
    factory = resolve(path)
    parameters = inspect.signature(factory).parameters.values()
    return PluginInfo(
        path=path,
        name=name_of(path),
        summary=(inspect.getdoc(factory) or "").partition("\n")[0],
        arguments={
            item.name: "required" if item.default is item.empty else repr(item.default)
            for item in parameters
            if item.name not in parts
        },
    )


def name_of(path: str) -> str:
    """``chat`` of ``nebengjek_plugins.chat:chat``: its table in the settings."""
    return path.rpartition(":")[2].rpartition(".")[2]


def resolve(path: str) -> Factory:
    """The factory at ``package.module:factory``. Raises Misconfigured."""
    if path.count(":") != 1:
        raise Misconfigured(f"plugins: {path!r}, expected package.module:factory")
    try:
        found = pkgutil.resolve_name(path)
    except ModuleNotFoundError as error:
        raise Misconfigured(
            f"plugins: {path} cannot be imported: there is no module {error.name} (is its extra installed?)"
        ) from error
    except AttributeError as error:
        raise Misconfigured(f"plugins: {path}: the module has no {path.rpartition(':')[2]}") from error
    except ValueError as error:
        raise Misconfigured(f"plugins: {path!r}, expected package.module:factory") from error
    if not callable(found):
        raise Misconfigured(f"plugins: {path} is no factory but {type(found).__name__}")
    factory: Factory = found
    return factory


def _make(name: str, factory: Factory, table: Mapping[str, Any], parts: Mapping[str, Any]) -> Module:
    parameters = inspect.signature(factory).parameters
    own = {key for key in parameters if key not in parts}
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    for key in table:
        if key not in own and not takes_any:
            close = difflib.get_close_matches(key, own, n=1)
            hint = f"; did you mean plugin.{name}.{close[0]}?" if close else f", expected one of {sorted(own)}"
            raise Misconfigured(f"plugin.{name}.{key}: there is no such argument{hint}")
    for item in parameters.values():
        bare = item.default is item.empty and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
        if bare and item.name not in table and item.name not in parts:
            raise Misconfigured(f"plugin.{name}.{item.name} is not set: {name} expects it")
    hints = get_type_hints(factory, include_extras=True)
    arguments = {key: parts[key] for key in parameters if key in parts}
    for key, value in table.items():
        try:
            arguments[key] = msgspec.convert(value, hints.get(key, Any))
        except msgspec.ValidationError as error:
            raise Misconfigured(f"plugin.{name}.{key}: {str(error).partition(' - at')[0]}") from error
    module = factory(**arguments)
    if not isinstance(module, Module):
        raise Misconfigured(f"plugins: {name} makes no Module but {type(module).__name__}")
    return module
