"""Every contract, those of plugins too, and values of any of them."""

import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

import nebengjek_plugins
from nebengjek import contracts
from nebengjek.bus.specs import StreamSpec
from nebengjek.contracts.message import Event, Query, type_of
from nebengjek.streams import STREAMS
from nebengjek_plugins.chat.module import STREAMS as CHAT_STREAMS
from nebengjek_plugins.notifications.module import STREAM as NOTIFICATIONS_STREAM

_plugins = [found.name for found in pkgutil.iter_modules(nebengjek_plugins.__path__, "nebengjek_plugins.")]
_MODULES = [
    *(found.name for found in pkgutil.iter_modules(contracts.__path__, f"{contracts.__name__}.")),
    *(f"{plugin}.contracts" for plugin in _plugins if importlib.util.find_spec(f"{plugin}.contracts") is not None),
]
for _name in _MODULES:
    importlib.import_module(_name)


def _kinds(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        yield from _kinds(kind)
        if kind.__struct_config__.tag is not None and kind.__module__ in _MODULES:
            yield kind


EVENTS: list[type[Event]] = sorted(_kinds(Event), key=type_of)
QUERIES: list[type[Query[Any]]] = sorted(_kinds(Query), key=type_of)
ALL_STREAMS: list[StreamSpec] = [*STREAMS, *CHAT_STREAMS, NOTIFICATIONS_STREAM]

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a contract, as its fields' types allow."""
    return _of(inspect.type_info(kind))


def _of(info: Any) -> st.SearchStrategy[Any]:
    return _MAKERS[type(info)](info)


def _numbers(info: Any, make: Callable[..., st.SearchStrategy[Any]], **options: Any) -> st.SearchStrategy[Any]:
    low, high = info.ge if info.gt is None else info.gt, info.le if info.lt is None else info.lt
    if info.gt is not None and make is st.floats:
        options["exclude_min"] = True
    return make(low, high, **options)


def _struct(info: Any) -> st.SearchStrategy[Any]:
    required = {field.name: _of(field.type) for field in info.fields if field.required}
    optional = {field.name: _of(field.type) for field in info.fields if not field.required}
    fields = st.fixed_dictionaries(required, optional=optional)
    return fields.map(lambda given: info.cls(**given))


_MAKERS: dict[type[Any], Callable[[Any], st.SearchStrategy[Any]]] = {
    inspect.BoolType: lambda _: st.booleans(),
    inspect.NoneType: lambda _: st.none(),
    inspect.StrType: lambda _: _TEXT,
    inspect.IntType: lambda info: _numbers(info, st.integers).filter(lambda value: abs(value) < 2**63),
    inspect.FloatType: lambda info: _numbers(info, st.floats, allow_nan=False, allow_infinity=False),
    inspect.DateTimeType: lambda _: _MOMENTS,
    inspect.LiteralType: lambda info: st.sampled_from(info.values),
    inspect.VarTupleType: lambda info: st.lists(_of(info.item_type), max_size=4).map(tuple),
    inspect.ListType: lambda info: st.lists(_of(info.item_type), max_size=4),
    inspect.DictType: lambda info: st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=4),
    inspect.UnionType: lambda info: st.one_of(*(_of(one) for one in info.types)),
    inspect.StructType: _struct,
}


def fields_of(kind: type[Any]) -> set[str]:
    """Names on the wire, the tag's included."""
    return {field.encode_name for field in msgspec.structs.fields(kind)} | {"type"}
