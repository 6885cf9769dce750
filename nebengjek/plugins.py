"""Plugins: modules that the settings name by dotted path, and that the application can live without.

``plugins = ["nebengjek_plugins.chat:chat"]`` names a factory; ``[plugin.chat]`` holds its keyword arguments. What
it needs of the application it names as parameters: ``def chat(bus, database, clock, *, lines: int = 3) -> Module``.
A parameter ``settings`` of a Struct type takes the whole table instead. A plugin whose parts may run in other processes
makes several modules, called ``chat`` and ``chat.worker``.
"""

import difflib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_type_hints

import msgspec
from litestar.di import Provide
from litestar.routes import HTTPRoute
from msgspec import NODEFAULT, Struct, structs

from nebengjek.errors import Misconfigured
from nebengjek.module import Module
from nebengjek.web import MsgspecLitestar

PARTS = (
    "admin_guard",
    "bus",
    "clock",
    "database",
    "delivery",
    "in_production",
    "otp_ttl",
    "pod_id",
    "presence",
    "registry",
    "sms",
    "state",
)
"""What a factory may ask for by naming it as a parameter; every other parameter is the settings' to fill.

``presence(kind)`` makes a registry of which pod holds what of a kind, beside that of phones. ``sms``: the gateway.
``registry``: Prometheus', for what a plugin measures.
``otp_ttl``: seconds for which a one-time code is of use. ``in_production``: the profile is ``production``.
"""
TABLE = "settings"
"""The parameter that takes the whole table, as a Struct."""

Factory = Callable[..., Module | Sequence[Module]]


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
        for module in _make(name, resolve(path), tables.get(name, {}), parts):
            if module.name in {*taken, *(other.name for other in modules)}:
                raise Misconfigured(f"plugins: {path} makes a module {module.name}, but there is one of that name")
            modules.append(module)
    return modules


def inspect_plugin(path: str, parts: Collection[str] = PARTS) -> PluginInfo:
    """What there is to know without making it. Raises Misconfigured when it cannot be imported."""
    factory = resolve(path)
    parameters = inspect.signature(factory).parameters.values()
    arguments = {
        item.name: "required" if item.default is item.empty else repr(item.default)
        for item in parameters
        if item.name not in parts
    }
    if (kind := _table_kind(factory)) is not None:
        arguments = {item.name: _default(item) for item in structs.fields(kind)}
    return PluginInfo(
        path=path,
        name=name_of(path),
        summary=(inspect.getdoc(factory) or "").partition("\n")[0],
        arguments=arguments,
    )


def served(module: Module) -> list[str]:
    """The routes of a module, by path: ``GET /chat/sessions``."""
    alone = MsgspecLitestar([*module.routes], dependencies={"user": Provide(_nobody)}, openapi_config=None)
    found = {
        f"{method} {route.path_format}"
        for route in alone.routes
        if isinstance(route, HTTPRoute)
        for method in route.methods - {"OPTIONS", "HEAD"}
    }
    return sorted(found, key=lambda one: one.partition(" ")[::-1])


async def _nobody() -> None:
    """In the place of who is asking, where nobody asks."""


def _table_kind(factory: Factory) -> type[Struct] | None:
    kind = get_type_hints(factory).get(TABLE)
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def _default(item: structs.FieldInfo) -> str:
    if item.default is not NODEFAULT:
        return repr(item.default)
    return repr(item.default_factory()) if item.default_factory is not NODEFAULT else "required"


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
            f"plugins: {path} cannot be imported: there is no module {error.name}"
            " (is its extra installed, or its folder in PYTHONPATH?)"
        ) from error
    except AttributeError as error:
        if path.partition(":")[0] not in sys.modules:
            raise  # Out of the module's own code.
        raise Misconfigured(f"plugins: {path}: the module has no {path.rpartition(':')[2]}") from error
    except ValueError as error:
        raise Misconfigured(f"plugins: {path!r}, expected package.module:factory") from error
    if not callable(found):
        raise Misconfigured(f"plugins: {path} is no factory but {type(found).__name__}")
    factory: Factory = found
    return factory


def _make(name: str, factory: Factory, table: Mapping[str, Any], parts: Mapping[str, Any]) -> Sequence[Module]:
    parameters = inspect.signature(factory).parameters
    arguments = {key: parts[key] for key in parameters if key in parts}
    if (kind := _table_kind(factory)) is not None:
        _refuse_unknown(name, table, [item.name for item in structs.fields(kind)])
        arguments[TABLE] = _converted(name, table, kind)
        for key in parameters.keys() - arguments.keys():
            if parameters[key].default is inspect.Parameter.empty:
                close = difflib.get_close_matches(key, parts, n=1)
                hint = f"; did you mean {close[0]}?" if close else f", expected one of {sorted(parts)}"
                raise Misconfigured(f"plugins: {name} asks for {key}, which there is not{hint}")
    else:
        arguments |= _arguments(name, factory, table, parts)
    made = factory(**arguments)
    modules = [made] if isinstance(made, Module) else made
    if not isinstance(modules, Sequence) or not all(isinstance(module, Module) for module in modules):
        raise Misconfigured(f"plugins: {name} makes no Module but {type(made).__name__}")
    return modules


def _refuse_unknown(name: str, table: Mapping[str, Any], own: Collection[str]) -> None:
    for key in table:
        if key not in own:
            close = difflib.get_close_matches(key, own, n=1)
            hint = f"; did you mean plugin.{name}.{close[0]}?" if close else f", expected one of {sorted(own)}"
            raise Misconfigured(f"plugin.{name}.{key}: there is no such argument{hint}")


def _converted(name: str, table: Mapping[str, Any], kind: type[Struct]) -> Struct:
    """Value by value, so that the key is named which does not fit; then as a whole, for what belongs together."""
    for item in structs.fields(kind):
        if item.name in table:
            _value(name, item.name, table[item.name], item.type)
        elif item.required:
            raise Misconfigured(f"plugin.{name}.{item.name} is not set: {name} expects it")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"plugin.{name}: {str(error).partition(' - at')[0]}") from error


def _value(name: str, key: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"plugin.{name}.{key}: {str(error).partition(' - at')[0]}") from error


def _arguments(name: str, factory: Factory, table: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    if not takes_any:
        _refuse_unknown(name, table, {key for key in parameters if key not in parts})
    for item in parameters.values():
        bare = item.default is item.empty and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
        if bare and item.name not in table and item.name not in parts:
            raise Misconfigured(f"plugin.{name}.{item.name} is not set: {name} expects it")
    hints = get_type_hints(factory, include_extras=True)
    return {key: _value(name, key, value, hints.get(key, Any)) for key, value in table.items()}
