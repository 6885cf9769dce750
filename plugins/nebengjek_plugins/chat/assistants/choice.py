"""Which assistants there are, by the name that a request gives: made when a question needs them."""

import pkgutil
from collections.abc import Callable, Mapping

from nebengjek.errors import Misconfigured
from nebengjek_plugins.chat.assistants.interface import Assistant
from nebengjek_plugins.chat.assistants.ride_desk import RideDesk
from nebengjek_plugins.chat.settings import ChatSettings

PROVIDERS = ("ride_desk", "openai", "anthropic", "custom")


def assistants(settings: ChatSettings) -> Mapping[str, Callable[[], Assistant]]:
    """Those that the settings name. Raises Misconfigured for one that there is not, or that lacks what it needs."""
    found: dict[str, Callable[[], Assistant]] = {}
    for name in dict.fromkeys((settings.ai_provider, *settings.providers)):
        if name not in PROVIDERS:
            raise Misconfigured(f"plugin.chat.ai_provider: {name!r}, expected one of {', '.join(PROVIDERS)}")
        found[name] = _maker(name, settings)
    return found


def _maker(name: str, settings: ChatSettings) -> Callable[[], Assistant]:
    match name:
        case "ride_desk":
            return RideDesk
        case "custom":
            return _custom(settings)
        case _:
            raise Misconfigured(f"plugin.chat.ai_provider: {name} is not there yet")


def _custom(settings: ChatSettings) -> Callable[[], Assistant]:
    if settings.custom is None:
        raise Misconfigured("plugin.chat.custom is not set: expected package.module:factory")
    try:
        factory = pkgutil.resolve_name(settings.custom)
    except (ImportError, AttributeError, ValueError) as error:
        raise Misconfigured(f"plugin.chat.custom: {settings.custom} cannot be imported: {error}") from error
    return lambda: factory(**settings.custom_options)
