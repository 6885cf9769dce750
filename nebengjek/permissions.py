"""What each module's NATS user may publish and hear, made from the modules' tables: nothing else is permitted to it.

All pods make the streams and all modules' consumers at the start (an interest stream keeps nothing for a consumer that
is not there yet), so creating those by name is everybody's; pulling from a consumer, settling and saying an event is
its module's alone. settings/nats-permissions.conf is this, written by ``nebengjek nats-permissions``.
"""

import json
import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from nebengjek.bus import last_tries
from nebengjek.bus.dead_letters import STREAM as DEAD_LETTERS
from nebengjek.bus.outbox import WAKE
from nebengjek.bus.specs import StreamSpec
from nebengjek.contracts.message import rpc_subject, type_of
from nebengjek.contracts.pods import BROADCASTS, HEARTBEAT
from nebengjek.module import Module
from nebengjek.streams import STREAMS, stream_of

EVERYTHING = "nebengjek"
"""The user of pods that run several modules: what each of them may, and what operators may."""
OPERATOR = "operator"
PHONES = "users"
"""The module whose pods hold sockets."""
POSTS = ("pod.*.deliver", BROADCASTS)
"""Where pods hear what is for their phones."""


class User(Struct, frozen=True, kw_only=True):
    """``publish`` and ``subscribe``: subjects, ``subject queue`` where only that queue group is permitted."""

    name: str
    publish: list[str]
    subscribe: list[str]

    @property
    def password_variable(self) -> str:
        """The environment variable of the server that holds its password."""
        return "NATS_PASSWORD" if self.name == EVERYTHING else f"NATS_{_word(self.name).upper()}_PASSWORD"


def users(
    modules: Sequence[Module], streams: Sequence[StreamSpec] = STREAMS, *, domain: str | None = None
) -> list[User]:
    """One for each module, one that is all of them, the operator's. ``domain``: of JetStream, behind a leaf node."""
    streams = [*streams, *(spec for module in modules for spec in module.streams)]
    api = ["$JS.API", *([f"$JS.{domain}.API"] if domain else [])]
    own = [_module_user(module, modules, streams, api) for module in modules]
    operator = _operator(modules, streams, api)
    everything = User(
        name=EVERYTHING,
        publish=_unique([*operator.publish, *(subject for user in own for subject in user.publish)]),
        subscribe=_unique(
            [f"_INBOX.{EVERYTHING}.>", *(subject for user in own for subject in user.subscribe if _is_shared(subject))]
        ),
    )
    return [*own, everything, operator]


def _word(name: str) -> str:
    """The name of a module, also of a part (``chat.worker``), where no dot may be."""
    return name.replace(".", "_")


def _any(subject: str) -> str:
    """The filter of a subject with ``{names}`` in it."""
    return re.sub(r"{\w+}", "*", subject)


def _is_shared(subject: str) -> bool:
    return not subject.startswith("_INBOX.")


def _unique(subjects: Iterable[str]) -> list[str]:
    return sorted(set(subjects))


def _module_user(module: Module, modules: Sequence[Module], streams: Sequence[StreamSpec], api: Sequence[str]) -> User:
    own = _consumers(module, streams)
    pulled = [*own, (last_tries.STREAM, last_tries.durable_of(module.name))] if own else []
    publish = [*_making(modules, streams, api), WAKE, HEARTBEAT]
    for root in api:
        for stream, consumer in pulled:
            publish += [f"{root}.CONSUMER.{verb}.{stream}.{consumer}" for verb in ("INFO", "MSG.NEXT")]
        for stream, consumer in own:
            # What a dead process held on its last try becomes a dead letter, unless it is one: who looks reads those
            # of the consumer, with a consumer that has a name of its own each time.
            publish += [
                f"{root}.STREAM.MSG.GET.{stream}",
                f"{root}.CONSUMER.CREATE.{DEAD_LETTERS}.*.dead_letter.{stream}.{consumer}",
            ]
        if own:
            publish += [f"{root}.CONSUMER.{verb}.{DEAD_LETTERS}.*" for verb in ("INFO", "DELETE")]
    for stream, consumer in pulled:
        publish.append(f"$JS.ACK.{stream}.{consumer}.>")
        if len(api) > 1:
            publish.append(f"$JS.ACK.*.*.{stream}.{consumer}.>")
    publish += [f"dead_letter.{stream}.{consumer}" for stream, consumer in own]
    if own:
        publish.append(f"$JS.FC.{DEAD_LETTERS}.>")
    publish += [f"{type_of(event)}.*" for event in module.says]
    publish += [rpc_subject(query) for query in module.asks]
    publish += [_any(telling.subject) for telling in module.tells]
    if module.name == PHONES:
        # What one pod hears for a phone of another.
        publish += POSTS
        # Its codes, where a plugin carries them.
        publish += [f"{type_of(other.sms.event)}.*" for other in modules if other.sms is not None]
    subscribe = [f"_INBOX.{_word(module.name)}.>", WAKE, HEARTBEAT, "pod.*.health"]
    if module.name == PHONES:
        subscribe += POSTS
    subscribe += [f"{type_of(watching.event)}.*" for watching in module.watches]
    subscribe += [f"{rpc_subject(answering.query)} {module.name}" for answering in module.answers]
    subscribe += [_any(listening.subject) for listening in module.listens]
    return User(name=_word(module.name), publish=_unique(publish), subscribe=_unique(subscribe))


def _making(modules: Sequence[Module], streams: Sequence[StreamSpec], api: Sequence[str]) -> list[str]:
    """What every pod does at its start, and asks for its health."""
    subjects = []
    for root in api:
        subjects.append(f"{root}.INFO")
        for spec in streams:
            subjects += [f"{root}.STREAM.{verb}.{spec.name}" for verb in ("CREATE", "UPDATE", "INFO")]
            subjects.append(f"{root}.CONSUMER.LIST.{spec.name}")
        for module in modules:
            own = _consumers(module, streams)
            for hearing, (stream, name) in zip(module.hears, own, strict=True):
                subjects.append(f"{root}.CONSUMER.CREATE.{stream}.{name}.{type_of(hearing.event)}.*")
            if own:
                filters = f".{last_tries.SUBJECT}.{own[0][0]}.{own[0][1]}" if len(own) == 1 else ""
                name = last_tries.durable_of(module.name)
                subjects.append(f"{root}.CONSUMER.CREATE.{last_tries.STREAM}.{name}{filters}")
    return subjects


def _consumers(module: Module, streams: Sequence[StreamSpec]) -> list[tuple[str, str]]:
    return [
        (stream_of(type_of(hearing.event), streams).name, hearing.consumer(module.name)) for hearing in module.hears
    ]


def _operator(modules: Sequence[Module], streams: Sequence[StreamSpec], api: Sequence[str]) -> User:
    """Looks at everything, and may purge, pause, delete and replay; says nothing of its own."""
    publish = [f"{root}.>" for root in api]
    publish += [WAKE, HEARTBEAT, "pod.*.health"]
    # A dead letter is replayed on the subject that it had.
    publish += [f"{type_of(event)}.*" for module in modules for event in module.says]
    publish += [f"dead_letter.{spec.name}.*" for spec in streams if spec.name not in (DEAD_LETTERS, last_tries.STREAM)]
    return User(name=OPERATOR, publish=_unique(publish), subscribe=[">"])


def authorization(found: Sequence[User]) -> str:
    """The block of a nats-server's configuration, passwords from the server's environment."""
    lines = [
        "# Who may publish and hear what: made from the modules' tables by `nebengjek nats-permissions --write FILE`.",
        "authorization {",
        "  users: [",
    ]
    for user in found:
        lines += [
            "    {",
            f"      user: {user.name}",
            f"      password: ${user.password_variable}",
            "      permissions: {",
            f"        publish: {{ allow: {_list(user.publish)} }}",
            f"        subscribe: {{ allow: {_list(user.subscribe)} }}",
            "        allow_responses: true # to whoever asked, once",
            "      }",
            "    }",
        ]
    return "\n".join([*lines, "  ]", "}", ""])


def _list(subjects: Sequence[str]) -> str:
    inner = "".join(f"          {json.dumps(subject)}\n" for subject in subjects)
    return f"[\n{inner}        ]"
