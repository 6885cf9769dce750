"""``nebengjek``: run it, try it, look after it. Commands import what they need when they run.

The embedded server must be ready in 1.5 s, and ``--help`` at once: Litestar, SQLAlchemy, rich tables and httpx
together cost a second, so no command pays for another's. Exit codes: 0 done, 1 refused or failed, 2 a wrong option
or setting, 3 the server (or what it needs) does not answer. Over 300 lines: a flat list of commands, short each.
"""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rich_click as click
from click import get_current_context
from click.exceptions import Exit
from msgspec import structs

from nebengjek.asking import Failure, Unreachable, show_json, show_table
from nebengjek.errors import Misconfigured, NebengJekError, Unavailable
from nebengjek.lock import exclusive, lock_path
from nebengjek.log import configure
from nebengjek.operating import consumers, dead_letters, pods, search, streams
from nebengjek.settings import Settings, given, load, masked
from nebengjek.workers import listen, serve_many

MODULES = ("users", "location", "match", "rides")
OPERATOR = "operator"
"""In the place of modules: a process that runs none of them, only /admin, /health and /metrics."""


class WrongSetting(click.ClickException):
    exit_code = 2


class Cli(click.RichGroup):
    """Our errors as messages and exit codes; what is a fault of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Misconfigured as error:
            raise _for_people_or_logs(WrongSetting(str(error))) from error
        except Unavailable as error:
            raise _for_people_or_logs(Unreachable(error.message)) from error
        except NebengJekError as error:
            raise _for_people_or_logs(Failure(str(error))) from error


def _for_people_or_logs(error: click.ClickException) -> Exception:
    """A box in a terminal; where a service's log is meant, lines as they are: a wrapped one cannot be searched for."""
    if sys.stderr.isatty():
        return error
    click.echo(f"Error: {error.message}", err=True)
    return Exit(error.exit_code)


_TRY = {
    "a first look": "nebengjek demo",
    "on a laptop": "nebengjek run",
    "on servers": "NATS_URL=… REDIS_URL=… DATABASE_URL=… nebengjek run",
    "with a profile": "nebengjek --settings settings/production.toml run",
    "what went wrong": "nebengjek dead-letters",
}
# A blank line is a line break here: the renderer joins the lines of a paragraph.
EXAMPLES = "\n\n".join(f"[dim]{what + ':':<17}[/dim] [cyan]{line}[/cyan]" for what, line in _TRY.items())


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.rich_config({"text_markup": "rich"})
@click.option(
    "--settings",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML profile; goes before NEBENGJEK_SETTINGS. Any setting: NEBENGJEK__SECTION__KEY.",
)
@click.version_option(version("nebengjek"), prog_name="nebengjek")
@click.command_panel("Ride", commands=["run", "demo", "simulate"])
@click.command_panel("Look after a running server", commands=["streams", "consumers", "dead-letters", "pods", "search"])
@click.command_panel("Set up", commands=["settings", "db", "plugins", "asyncapi", "nats-permissions"])
def cli(settings: Path | None) -> None:
    """NebengJek: ride-hailing, one command on a laptop, many machines in a city.

    Without settings everything is embedded in one process: the bus, the location index, an SQLite file.
    NATS_URL, REDIS_URL and DATABASE_URL, each alone or together, put real servers in their place.
    """


def _settings() -> Settings:
    return load(get_current_context().find_root().params["settings"], os.environ)


for command in (streams, consumers, dead_letters, pods, search):
    cli.add_command(command)


# -- run


@cli.command()
@click.option("--host", help="Where to listen. Default: web.host, 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="0 = any free one. Default: web.port, 8000.")
@click.option(
    "--modules",
    help=f"Only these, separated by commas, of {', '.join(MODULES)} and the plugins'; or {OPERATOR}: none. "
    "Needs NATS_URL, REDIS_URL and DATABASE_URL.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on this port.")
def run(host: str | None, port: int | None, modules: str | None, workers: int) -> None:
    """Start the server. SIGTERM or ^C drains it: no handler is cut off."""
    settings = _settings()
    web = structs.replace(
        settings.web,
        host=settings.web.host if host is None else host,
        port=settings.web.port if port is None else port,
    )
    settings = structs.replace(settings, web=web)
    chosen = _chosen_modules(modules, settings.plugins)
    if workers > 1:
        _need_servers(settings, f"--workers {workers}")
    if chosen is not None:
        _need_servers(settings, f"--modules {','.join(chosen) or OPERATOR}")
    configure(level=settings.log.level, format=settings.log.format, audit=settings.log.audit)
    with ExitStack() as held:
        if (database := settings.database.file) is not None:
            held.enter_context(exclusive(lock_path(database)))
        listening = held.enter_context(listen(settings.web.host, settings.web.port))
        if workers > 1:
            _say_hello(settings, f"{workers} workers")
            code = serve_many(settings, workers, listening, modules=chosen, on_ready=_say_ready)
        else:
            # The whole application: nothing but ``run`` needs it. What is imported stays: collecting garbage
            # meanwhile finds none and costs a tenth of the start.
            gc.disable()
            from nebengjek.server import serve

            gc.freeze()
            gc.enable()

            code = serve(
                settings,
                modules=chosen,
                announce=lambda app: _announce(settings, app),
                on_ready=_say_ready,
                sockets=[listening],
            )
    sys.exit(code)


def _chosen_modules(text: str | None, plugins: Sequence[str]) -> list[str] | None:
    if text is None:
        return None
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    if chosen == [OPERATOR]:
        return []
    # Of ``chat.worker`` only the plugin is known before it is loaded; the application knows the rest.
    known = [*MODULES, *(path.rpartition(":")[2] for path in plugins)]
    unknown = sorted(name for name in chosen if name.partition(".")[0] not in known)
    if unknown or not chosen:
        raise click.BadParameter(f"{', '.join(unknown) or 'none'}: expected some of {', '.join(known)}")
    return chosen


def _need_servers(settings: Settings, what: str) -> None:
    """Raises Misconfigured: several processes cannot share what is embedded in one."""
    parts = {
        "NATS_URL": ("the bus", settings.nats.is_real),
        "REDIS_URL": ("the fast state", settings.redis.is_real),
        "DATABASE_URL": ("the database (SQLite)", settings.database.is_real),
    }
    missing = {name: part for name, (part, is_real) in parts.items() if not is_real}
    if missing:
        raise Misconfigured(
            f"{what} means several processes, but {' and '.join(missing.values())} would be embedded in each: "
            f"set {' and '.join(missing)}, or run one process with all modules"
        )


def _say_hello(settings: Settings, what: str) -> None:
    name = click.style("NebengJek", bold=True)
    click.echo(f"{name} {version('nebengjek')} · {settings.profile} · {what}")
    if settings.profile == "development" and settings.web.host not in ("127.0.0.1", "localhost", "::1"):
        _warn("development: codes come back in the answer and keys are well known, whoever reaches it is anybody")


def _warn(text: str) -> None:
    click.echo(click.style(f"  {text}", fg="yellow"))


def _announce(settings: Settings, app: Any) -> None:
    _say_hello(settings, app.pod_id)
    for part, kind, where in app.parts():
        click.echo(f"  {part:<11} {click.style(f'{kind:<9}', fg='cyan' if kind == 'real' else 'green')} {where}")
    click.echo(f"  {'modules':<11} {', '.join(module.name for module in app.running) or 'none: /admin only'}")


def _say_ready(url: str) -> None:
    click.echo(f"ready on {click.style(url, bold=True)}  (/schema, /asyncapi, /health, /metrics; ^C drains)")


# -- demo, simulate


def _common(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--url", help="A running server; without it one is started for the run."),
        click.option("--seed", type=int, default=1, show_default=True, help="What people do, not who they are."),
        click.option("--json", type=click.Path(path_type=Path, dir_okay=False), help="Write the result there too."),
        click.option("--noise-m", default=5.0, show_default=True, help="GPS error in metres, 68 %."),
    ):
        command = option(command)
    return command


@cli.command()
@click.option("--drivers", default=20, show_default=True)
@click.option("--passengers", default=25, show_default=True)
@click.option("--speed", default=90.0, show_default=True, help="Simulated seconds in a real one.")
@click.option("--ping-seconds", default=6.0, show_default=True, help="Simulated seconds between two points of a phone.")
@_common
def demo(**options: Any) -> None:
    """A busy evening in Jakarta: strangers log in, are matched, ride and pay, in under a minute."""
    from nebengjek.simulate import DemoOptions
    from nebengjek.simulate import demo as ride

    sys.exit(asyncio.run(ride(DemoOptions(**options))))


@cli.command()
@click.option(
    "--trips",
    required=True,
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="CSV with pickup_time, pickup_lat, pickup_lon, dropoff_lat, dropoff_lon.",
)
@click.option("--limit", default=500, show_default=True, help="Trips at most, 0 = all.")
@click.option("--drivers", default=200, show_default=True)
@click.option("--speed", default=60.0, show_default=True, help="Simulated seconds in a real one.")
@click.option("--ping-seconds", default=4.0, show_default=True, help="Simulated seconds between two points of a phone.")
@click.option("--accept", default=0.9, show_default=True, help="Share of proposals that drivers accept.")
@click.option("--cancel", default=0.02, show_default=True, help="Share of rides cancelled before the pick-up.")
@_common
def simulate(**options: Any) -> None:
    """Drive real trips through a server, and check every bill; exit 1 names what does not agree."""
    from nebengjek.simulate import SimulationOptions
    from nebengjek.simulate import simulate as ride

    sys.exit(asyncio.run(ride(SimulationOptions(**options))))


# -- db


@cli.group()
def db() -> None:
    """The database's schema."""


@db.command()
def upgrade() -> None:
    """Run the migrations that are missing."""
    for name, before, after in asyncio.run(_migrate(_settings())):
        click.echo(name + (f"already at {after}" if before == after else f"{before or 'empty'} → {after}"))


@db.command("revision-check")
def revision_check() -> None:
    """Say how far the schema is; exit 1 when migrations are missing."""
    found = asyncio.run(_revisions(_settings()))
    for name, present, newest in found:
        click.echo(f"{name}{present or 'empty'}, newest {newest}")
    sys.exit(0 if all(present == newest for _, present, newest in found) else 1)


def _histories(settings: Settings) -> list[Any]:
    from nebengjek import schema

    if not settings.plugins:
        return [schema.OWN]
    return schema.histories(_without_servers(settings).modules)


def _without_servers(settings: Settings) -> Any:
    """The application's modules: nothing is connected to, and no file of a credential is needed."""
    from nebengjek.app import App

    return App(Settings(profile="test", plugins=settings.plugins, plugin=settings.plugin))


async def _migrate(settings: Settings) -> list[tuple[str, str | None, str]]:
    """(what comes before it on the line, revision before, revision after) of each history."""
    from nebengjek import schema
    from nebengjek.database import Database

    database = Database(settings.database.url)
    try:
        return [(_named(one), *await schema.upgrade(database, one)) for one in _histories(settings)]
    finally:
        await database.close()


async def _revisions(settings: Settings) -> list[tuple[str, str | None, str]]:
    from nebengjek import schema
    from nebengjek.database import Database

    histories = _histories(settings)
    # To look is not to make: SQLite would leave an empty file behind.
    if (file := settings.database.file) is not None and not file.exists():
        return [(_named(one), None, one.head) for one in histories]
    database = Database(settings.database.url)
    try:
        return [(_named(one), await schema.revision(database, one), one.head) for one in histories]
    finally:
        await database.close()


def _named(history: Any) -> str:
    return f"{history.name}: " if history.name else ""


# -- settings, plugins, asyncapi


@cli.group()
def settings() -> None:
    """Every setting, its value, and where that comes from."""


@settings.command("show")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--changed", is_flag=True, help="Only what is not a default.")
def settings_show(as_json: bool, changed: bool) -> None:
    """Secrets are masked. Refuses, like `run`, when a setting is wrong."""
    shown = masked(_settings())
    sources = given(get_current_context().find_root().params["settings"], os.environ)
    rows = {key: value for key, value in shown.items() if not changed or key in sources}
    if as_json:
        show_json(rows)
        return
    origin = {key: sources[key].origin if key in sources else "" for key in rows}
    show_table([[key, _setting(value), origin[key]] for key, value in rows.items()], ["setting", "value", "from"])


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else ", ".join(value) if isinstance(value, list) else str(value)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plugins(as_json: bool) -> None:
    """The plugins that the settings name: what they hear, serve and take; exit 1 when one cannot be loaded."""
    from nebengjek.plugins import PARTS, inspect_plugin

    wanted = _settings()
    rows: list[dict[str, Any]] = []
    for path in wanted.plugins:
        try:
            info = structs.asdict(inspect_plugin(path, PARTS))
            rows.append({**info, "modules": _parts_of(wanted, path, info["name"]), "error": None})
        except Misconfigured as error:
            rows.append({"path": path, "name": "", "summary": "", "arguments": {}, "modules": [], "error": str(error)})
    if as_json:
        show_json(rows)
    elif not rows:
        click.echo('no plugins: name them in the settings, plugins = ["package.module:factory"]')
    else:
        for row in rows:
            _show_plugin(row)
    sys.exit(1 if any(row["error"] for row in rows) else 0)


def _parts_of(settings: Settings, path: str, name: str) -> list[dict[str, Any]]:
    """What each module of a plugin hears, says and serves."""
    from nebengjek.app import App
    from nebengjek.contracts.message import type_of
    from nebengjek.plugins import served

    table = {name: settings.plugin[name]} if name in settings.plugin else {}
    app = App(Settings(profile="test", plugins=(path,), plugin=table))
    return [
        {
            "name": module.name,
            "hears": {type_of(one.event): one.consumer(module.name) for one in module.hears},
            "watches": [type_of(one.event) for one in module.watches],
            "says": [type_of(one) for one in module.says],
            "serves": served(module),
        }
        for module in app.modules
        if module.name not in MODULES
    ]


def _show_plugin(row: dict[str, Any]) -> None:
    click.secho(row["name"] or row["path"], bold=True)
    click.echo(f"  {row['error'] or row['summary']}")
    if row["arguments"]:
        click.echo(f"  takes    {_arguments(row)}")
    for module in row["modules"]:
        click.echo(f"  {module['name']}")
        for verb in ("serves", "hears", "watches", "says"):
            for number, what in enumerate(module[verb]):
                durable = f"  ({module['hears'][what]})" if verb == "hears" else ""
                click.echo(f"    {verb if number == 0 else '':<9}{what}{durable}")


def _arguments(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={default}" for name, default in row["arguments"].items())


@cli.command()
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file.")
@click.option("--check", type=click.Path(exists=True, path_type=Path, dir_okay=False), help="Exit 1 when it differs.")
def asyncapi(write: Path | None, check: Path | None) -> None:
    """The events, queries and frames as an AsyncAPI 3 document, made from the code."""
    from nebengjek.app import App
    from nebengjek.asyncapi import document, document_text

    _hand_out(document_text(document(App(Settings()).modules)), "asyncapi", write, check)


@cli.command("nats-permissions")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file.")
@click.option("--check", type=click.Path(exists=True, path_type=Path, dir_okay=False), help="Exit 1 when it differs.")
def nats_permissions(write: Path | None, check: Path | None) -> None:
    """The users of a nats-server, one a module, each with its own subjects only; for its configuration file.

    Passwords come from the server's environment: NATS_USERS_PASSWORD and so on, NATS_PASSWORD of the user that is all
    modules at once, NATS_OPERATOR_PASSWORD.
    """
    from nebengjek.permissions import authorization, users

    wanted = _settings()
    text = authorization(users(_without_servers(wanted).modules, domain=wanted.nats.domain))
    _hand_out(text, "nats-permissions", write, check)


def _hand_out(text: str, command: str, write: Path | None, check: Path | None) -> None:
    if check is not None and check.read_text(encoding="utf-8") != text:
        raise Failure(f"{check} is not what the code says: nebengjek {command} --write {check}")
    if write is not None:
        write.write_text(text, encoding="utf-8")
    if write is None and check is None:
        click.echo(text, nl=False)


def main() -> None:
    """The console script."""
    cli()
