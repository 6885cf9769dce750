"""Commands that ask a running server: streams, consumers, dead letters, pods. One way for embedded and real.

An embedded bus lives in the server's process, so nobody else can look into it: the commands speak HTTP to its
``/admin``, with the API key.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import rich_click as click
from click import get_current_context

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
            show_table([[_text(name, item.get(name)) for name in columns] for item in items], list(columns.values()))


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


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if name in ("bytes", "max_bytes"):
        return size_text(value)
    if name in ("time", "timestamp"):
        return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{value:,}" if isinstance(value, int) else str(value)


def size_text(size: float) -> str:
    """``1.5 MiB``"""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


# -- streams and consumers

STREAM_COLUMNS = {
    "name": "stream",
    "subjects": "subjects",
    "retention": "retention",
    "storage": "storage",
    "messages": "messages",
    "bytes": "size",
    "max_bytes": "at most",
    "first_seq": "first",
    "last_seq": "last",
    "consumers": "consumers",
}
CONSUMER_COLUMNS = {
    "name": "consumer",
    "stream": "stream",
    "pending": "pending",
    "ack_pending": "under way",
    "redelivered": "redelivered",
    "delivered_seq": "delivered",
    "ack_floor_seq": "settled",
    "orphan": "unwanted",
}


@click.group(invoke_without_command=True)
@asks_server
def streams(server: Server) -> None:
    """Streams of a running server: what they hold.

    Alone the same as `streams ls`.
    """
    if get_current_context().invoked_subcommand is None:
        _list_streams(server)


@streams.command("ls")
@asks_server
def streams_ls(server: Server) -> None:
    """Every stream, how full it is."""
    _list_streams(server)


def _list_streams(server: Server) -> None:
    server.show(server.get("/streams")["items"], STREAM_COLUMNS, "no streams")


@streams.command("info")
@click.argument("name")
@asks_server
def streams_info(server: Server, name: str) -> None:
    """One stream and its consumers: `nebengjek streams info RIDE_STREAM`."""
    found = server.get(f"/streams/{name}")
    if server.as_json:
        show_json(found)
        return
    rows = found.pop("consumer_list")
    for field, value in found.items():
        click.echo(f"{field.replace('_', ' '):<12} {_text(field, value)}")
    server.show(rows, {key: head for key, head in CONSUMER_COLUMNS.items() if key != "stream"}, "no consumers")


@click.command()
@click.option("--stream", help="Only those of this stream.")
@click.option("--prune", is_flag=True, help="Delete those that no module wants (they keep messages from being freed).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@asks_server
def consumers(server: Server, stream: str | None, prune: bool, yes: bool) -> None:
    """Durable consumers of a running server: how far each is behind."""
    rows = server.get("/consumers", stream=stream)["items"]
    if not prune:
        server.show(rows, CONSUMER_COLUMNS, "no consumers")
        return
    unwanted = [row for row in rows if row["orphan"]]
    if unwanted and not yes:
        names = ", ".join(f"{row['stream']}/{row['name']}" for row in unwanted)
        click.confirm(f"Delete {names}?", abort=True, err=True)
    for row in unwanted:
        server.ask("DELETE", f"/consumers/{row['stream']}/{row['name']}")
    server.show(unwanted, {"name": "deleted", "stream": "stream"}, "every consumer is wanted")


# -- dead letters

LETTER_COLUMNS = {
    "seq": "seq",
    "consumer": "consumer",
    "subject": "subject",
    "reason": "reason",
    "error": "error",
    "deliveries": "tries",
    "time": "time",
}


@click.group("dead-letters", invoke_without_command=True)
@asks_server
def dead_letters(server: Server) -> None:
    """Messages that a consumer could not handle, with the cause.

    Alone the same as `dead-letters list`.
    """
    if get_current_context().invoked_subcommand is None:
        _list_letters(server, 50, 0)


@dead_letters.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--after", type=click.IntRange(0), default=0, help="Only those with a greater number.")
@asks_server
def dead_letters_list(server: Server, limit: int, after: int) -> None:
    """The oldest first."""
    _list_letters(server, limit, after)


def _list_letters(server: Server, limit: int, after: int) -> None:
    page = server.get("/dead-letters", limit=limit, after=after)
    server.show(page["items"], LETTER_COLUMNS, "no dead letters")
    if page["next_after"] is not None and not server.as_json:
        click.echo(f"there are more: --after {page['next_after']}")


@dead_letters.command("show")
@click.argument("seq", type=click.IntRange(1))
@asks_server
def dead_letters_show(server: Server, seq: int) -> None:
    """One with its cause, headers and body."""
    letter = server.get(f"/dead-letters/{seq}")
    if server.as_json:
        show_json(letter)
        return
    data, headers = letter.pop("data"), letter.pop("headers")
    for field, value in letter.items():
        click.echo(f"{field.replace('_', ' '):<12} {_text(field, value)}")
    click.echo("headers")
    for name, value in headers.items():
        click.echo(f"  {name}: {value}")
    click.echo("body")
    click.echo(_indented(data))


def _indented(data: str) -> str:
    try:
        return json.dumps(json.loads(data), indent=2, ensure_ascii=False)
    except ValueError:
        return data


@dead_letters.command("replay")
@click.argument("seqs", metavar="SEQ...", type=click.IntRange(1), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that there are now.")
@asks_server
def dead_letters_replay(server: Server, seqs: tuple[int, ...], everything: bool) -> None:
    """Deliver again, to the one consumer that failed."""
    _each(server, "POST", "/replay", "replayed", _chosen(server, seqs, everything))


@dead_letters.command("drop")
@click.argument("seqs", metavar="SEQ...", type=click.IntRange(1), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that there are now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@asks_server
def dead_letters_drop(server: Server, seqs: tuple[int, ...], everything: bool, yes: bool) -> None:
    """Forget for good."""
    chosen = _chosen(server, seqs, everything)
    if chosen and not yes:
        click.confirm(f"Forget {len(chosen)} dead letter(s) for good?", abort=True, err=True)
    _each(server, "DELETE", "", "dropped", chosen)


def _chosen(server: Server, seqs: Sequence[int], everything: bool) -> list[int]:
    if bool(seqs) == everything:
        raise click.UsageError("name dead letters by number, or say --all")
    if not everything:
        return list(seqs)
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        page = server.get("/dead-letters", limit=1000, after=after)
        found += [letter["seq"] for letter in page["items"]]
        after = page["next_after"]
    return found


def _each(server: Server, method: str, action: str, done: str, seqs: Sequence[int]) -> None:
    letters = [server.ask(method, f"/dead-letters/{seq}{action}") for seq in seqs]
    server.show(letters, {"seq": done, "consumer": "consumer", "subject": "subject"}, "no dead letters")


# -- pods

POD_COLUMNS = {
    "pod_id": "pod",
    "modules": "modules",
    "embedded": "embedded",
    "active_connections": "phones",
    "memory_usage_mb": "memory MB",
    "cpu_usage_percent": "cpu %",
    "timestamp": "heard",
}


@click.command()
@asks_server
def pods(server: Server) -> None:
    """Processes that run this application and were heard lately."""
    server.show(server.get("/pods")["items"], POD_COLUMNS, "no pods")
