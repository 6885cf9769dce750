"""A running server as its operator asks it over HTTP, and its answers as tables or JSON."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import rich_click as click
from click import get_current_context

from nebengjek.profile import size_text
from nebengjek.settings import Settings, load

F = TypeVar("F", bound=Callable[..., Any])
TIMEOUT = 10.0


class Failure(click.ClickException):
    """Said to people without a traceback."""

    exit_code = 1


class Unreachable(Failure):
    """The server, or what it needs, does not answer."""

    exit_code = 3


class Server:
    """A running server as its operator sees it; what is None comes from the settings when it is first asked."""

    def __init__(self, url: str | None, api_key: str | None, settings: Path | None, *, as_json: bool) -> None:
        self.url = url
        self.api_key = api_key
        self.as_json = as_json
        self._settings = settings

    def get(self, path: str, **query: Any) -> Any:
        return self.ask("GET", path, **query)

    def ask(self, method: str, path: str, **query: Any) -> Any:
        """The answer's JSON. Raises Failure or Unreachable, saying what to do."""
        # httpx takes a sixth of a second to import, which only these commands need.
        import httpx

        url, api_key = self._where()
        try:
            answer = httpx.request(
                method,
                f"{url}/admin{path}",
                params={name: value for name, value in query.items() if value is not None},
                headers={"X-API-Key": api_key},
                timeout=TIMEOUT,
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(
                f"no server answers at {url} ({type(error).__name__}): start one with `nebengjek run`, "
                "or name another with --url"
            ) from error
        if answer.status_code == 401:
            raise Failure(f"{url} has another API key: --api-key, or NEBENGJEK__ADMIN__API_KEY")
        if answer.status_code == 503:
            raise Unreachable(_detail(answer))
        if not answer.is_success:
            raise Failure(_detail(answer))
        try:
            return answer.json()
        except ValueError as error:
            raise Failure(f"{url} is no NebengJek server: its answer is not JSON") from error

    def _where(self) -> tuple[str, str]:
        # Who names both needs no settings: an operator's machine is not the server's.
        if self.url is None or self.api_key is None:
            settings = load(self._settings, os.environ)
            self.url, self.api_key = self.url or own_url(settings), self.api_key or settings.admin.api_key
        return self.url.rstrip("/"), self.api_key

    def show(self, items: Sequence[dict[str, Any]], columns: dict[str, str], nothing: str) -> None:
        """JSON when asked for, else a table; ``columns``: heading by field."""
        if self.as_json:
            show_json(items)
        elif not items:
            click.echo(nothing)
        else:
            show_table(
                [[value_text(name, item.get(name)) for name in columns] for item in items], list(columns.values())
            )


def _detail(answer: Any) -> str:
    try:
        body = answer.json()
    except ValueError:
        body = None
    detail = body.get("detail") if isinstance(body, dict) else None
    return str(detail) if detail else f"{answer.request.url} says {answer.status_code}"


def asks_server(command: F) -> F:
    """Adds --url, --api-key, --json; the command gets a ``Server`` first. A group's options hold for its commands."""

    @click.option("--url", help="The server; default: where the settings say it listens.", envvar="NEBENGJEK_URL")
    @click.option("--api-key", help="Default: admin.api_key of the settings.")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    @functools.wraps(command)
    def asking(url: str | None, api_key: str | None, as_json: bool, **options: Any) -> Any:
        ctx = get_current_context()
        if isinstance(ctx.obj, Server):
            url, api_key, as_json = url or ctx.obj.url, api_key or ctx.obj.api_key, as_json or ctx.obj.as_json
        ctx.obj = Server(url, api_key, ctx.find_root().params.get("settings"), as_json=as_json)
        return command(ctx.obj, **options)

    return cast(F, asking)


def own_url(settings: Settings) -> str:
    """Where this machine reaches the server of these settings."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.web.host, settings.web.host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{settings.web.port}"


# -- showing


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_table(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        numbers = all(row[index].replace(",", "").isdigit() for row in rows)
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    # Into a file or a pipe nothing is cut: a program reads it.
    (console if console.is_terminal else Console(width=240)).print(table)


def value_text(name: str, value: Any) -> str:
    """A field for people: sizes with a unit, times in this machine's zone, ``-`` for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if name in ("bytes", "max_bytes"):
        return size_text(value)
    if name in ("time", "timestamp", "paused_until"):
        return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{value:,}" if isinstance(value, int) else str(value)
