"""Commands that ask a running server: streams, consumers, dead letters, pods. One way for embedded and real.

An embedded bus lives in the server's process, so nobody else can look into it: the commands speak HTTP to its
``/admin``, with the API key.
"""

import json
from collections.abc import Sequence
from typing import Any

import rich_click as click
from click import get_current_context

from nebengjek.asking import Failure, Server, asks_server, show_json, value_text

_may_ask = click.option("--yes", is_flag=True, help="Do not ask.")

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
    "paused_until": "paused until",
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
        click.echo(f"{field.replace('_', ' '):<12} {value_text(field, value)}")
    server.show(rows, {key: head for key, head in CONSUMER_COLUMNS.items() if key != "stream"}, "no consumers")


@streams.command("purge")
@click.argument("name")
@click.option("--subject", help="Only this subject, ride.pickup.* for instance.")
@click.option("--keep", type=click.IntRange(0), help="All but so many, the newest.")
@click.option("--up-to", type=click.IntRange(1), help="Only those below this number.")
@_may_ask
@asks_server
def streams_purge(
    server: Server, name: str, subject: str | None, keep: int | None, up_to: int | None, yes: bool
) -> None:
    """Remove messages for good, also those that a consumer has not settled: `nebengjek streams purge RIDE_STREAM`."""
    there = server.get(f"/streams/{name}")["messages"]
    which = " and ".join(
        words
        for words in (
            f"of {subject}" if subject else "",
            f"but the newest {keep:,}" if keep is not None else "",
            f"below {up_to:,}" if up_to is not None else "",
        )
        if words
    )
    _confirm(
        f"Remove messages {which} from {name}, which holds {there:,}?"
        if which
        else f"Remove all {there:,} messages from {name}?",
        yes,
    )
    done = server.ask("POST", f"/streams/{name}/purge", subject=subject, keep=keep, up_to=up_to)
    server.show([done], {"name": "stream", "purged": "removed"}, "")


@streams.command("delete")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also one of the application, which makes it again, empty.")
@_may_ask
@asks_server
def streams_delete(server: Server, name: str, force: bool, yes: bool) -> None:
    """Delete a stream with all that it holds, and its consumers."""
    there = server.get(f"/streams/{name}")
    _confirm(f"Delete {name} with {there['messages']:,} messages and {there['consumers']} consumers?", yes)
    done = server.ask("DELETE", f"/streams/{name}", force="true" if force else None)
    server.show([done], {"name": "deleted", "messages": "messages", "consumers": "consumers"}, "")


@click.group(invoke_without_command=True)
@click.option("--stream", help="Only those of this stream.")
@click.option("--prune", is_flag=True, help="Delete those that no module wants (they keep messages from being freed).")
@_may_ask
@asks_server
def consumers(server: Server, stream: str | None, prune: bool, yes: bool) -> None:
    """Durable consumers of a running server: how far each is behind.

    Alone the same as `consumers ls`.
    """
    if get_current_context().invoked_subcommand is None:
        _list_consumers(server, stream, prune, yes)


@consumers.command("ls")
@click.option("--stream", help="Only those of this stream.")
@click.option("--prune", is_flag=True, help="Delete those that no module wants (they keep messages from being freed).")
@_may_ask
@asks_server
def consumers_ls(server: Server, stream: str | None, prune: bool, yes: bool) -> None:
    """Every durable consumer: how far it is behind."""
    _list_consumers(server, stream, prune, yes)


def _list_consumers(server: Server, stream: str | None, prune: bool, yes: bool) -> None:
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


@consumers.command("info")
@click.argument("name")
@asks_server
def consumers_info(server: Server, name: str) -> None:
    """One consumer, how it is set and how far it is: `nebengjek consumers info ride_pickup_match`."""
    _show_consumer(server, _find(server, name))


@consumers.command("pause")
@click.argument("name")
@click.option("--minutes", type=click.FloatRange(0, 7 * 24 * 60, min_open=True), default=10.0, show_default=True)
@asks_server
def consumers_pause(server: Server, name: str, minutes: float) -> None:
    """Deliver nothing for a while; what is said meanwhile waits in the stream."""
    _show_consumer(server, server.ask("POST", f"{_path(_find(server, name))}/pause", seconds=minutes * 60))


@consumers.command("resume")
@click.argument("name")
@asks_server
def consumers_resume(server: Server, name: str) -> None:
    """End a pause."""
    _show_consumer(server, server.ask("POST", f"{_path(_find(server, name))}/resume"))


@consumers.command("delete")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also one that a module hears through; its pods make it again.")
@_may_ask
@asks_server
def consumers_delete(server: Server, name: str, force: bool, yes: bool) -> None:
    """Delete a consumer; what an interest stream kept for it alone is gone."""
    row = _find(server, name)
    _confirm(f"Delete {row['stream']}/{row['name']}, which has {row['lag']:,} messages to settle?", yes)
    done = server.ask("DELETE", _path(row), force="true" if force else None)
    server.show([done], {"name": "deleted", "stream": "stream"}, "")


def _find(server: Server, name: str) -> dict[str, Any]:
    """By its name, or ``STREAM/name`` where two streams have one of that name."""
    rows: list[dict[str, Any]] = server.get("/consumers")["items"]
    found = [row for row in rows if name in (row["name"], f"{row['stream']}/{row['name']}")]
    if not found:
        raise Failure(f"there is no consumer {name}: nebengjek consumers lists them")
    if len(found) > 1:
        ways = " or ".join(f"{row['stream']}/{name}" for row in found)
        raise Failure(f"{name} is on several streams: say {ways}")
    return found[0]


def _path(row: dict[str, Any]) -> str:
    return f"/consumers/{row['stream']}/{row['name']}"


def _show_consumer(server: Server, row: dict[str, Any]) -> None:
    if server.as_json:
        show_json(row)
        return
    for field, value in row.items():
        click.echo(f"{field.replace('_', ' '):<14} {value_text(field, value)}")


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)


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
        click.echo(f"{field.replace('_', ' '):<12} {value_text(field, value)}")
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


# -- search


@click.group()
def search() -> None:
    """The operators' search for users, of a server with the plugin profiles."""


@search.command("rebuild")
@click.option("--step", type=click.IntRange(1, 1000), default=500, show_default=True, help="Accounts at a time.")
@asks_server
def search_rebuild(server: Server, step: int) -> None:
    """Index all accounts anew, and remove who is no more; the server goes on meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    indexed = removed = 0
    after = ""
    columns = (TextColumn("accounts"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=server.as_json) as progress:
        bar = progress.add_task("accounts", total=None)
        while True:
            done = server.ask("POST", "/users/search/rebuild", after=after, limit=step)
            indexed, removed = indexed + done["indexed"], removed + done["removed"]
            # Who signed up meanwhile is indexed too.
            total = None if done["total"] is None else max(done["total"], indexed)
            progress.update(bar, completed=indexed, **({} if total is None else {"total": total}))
            if done["next"] is None:
                break
            after = done["next"]
    if server.as_json:
        show_json({"indexed": indexed, "removed": removed})
    else:
        click.echo(f"{indexed:,} accounts indexed, {removed:,} entries removed")
