"""Which assistants there are, by the name that a request gives: made when a question needs them."""

import pkgutil
from collections.abc import Callable, Mapping
from functools import partial

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
        case "openai":
            return _openai(settings)
        case _:
            return _anthropic(settings)


def _openai(settings: ChatSettings) -> Callable[[], Assistant]:
    api_key = _needed(settings.openai_api_key, "openai_api_key")
    _needed(settings.model or None, "model")
    try:
        # An extra, and heavy: only who names it pays for it.
        from nebengjek_plugins.chat.assistants.openai_models import OpenAIAssistant
    except ModuleNotFoundError as error:
        raise Misconfigured("plugin.chat.ai_provider: openai needs the extra openai") from error
    return partial(
        OpenAIAssistant, api_key=api_key, base_url=settings.openai_base_url, timeout=settings.provider_timeout
    )


def _anthropic(settings: ChatSettings) -> Callable[[], Assistant]:
    api_key = _needed(settings.anthropic_api_key, "anthropic_api_key")
    _needed(settings.model or None, "model")
    try:
        from nebengjek_plugins.chat.assistants.anthropic_models import AnthropicAssistant
    except ModuleNotFoundError as error:
        raise Misconfigured("plugin.chat.ai_provider: anthropic needs the extra anthropic") from error
    return partial(
        AnthropicAssistant, api_key=api_key, base_url=settings.anthropic_base_url, timeout=settings.provider_timeout
    )


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise Misconfigured(f"plugin.chat.{name} is not set: this ai_provider expects it")
    return value


def _custom(settings: ChatSettings) -> Callable[[], Assistant]:
    if settings.custom is None:
        raise Misconfigured("plugin.chat.custom is not set: expected package.module:factory")
    try:
        factory = pkgutil.resolve_name(settings.custom)
    except (ImportError, AttributeError, ValueError) as error:
        raise Misconfigured(f"plugin.chat.custom: {settings.custom} cannot be imported: {error}") from error
    return lambda: factory(**settings.custom_options)
