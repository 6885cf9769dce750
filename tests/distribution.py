"""Which worker of pytest-xdist runs which files of tests, and which come first."""

from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

FIRST = (
    # Each starts several processes: one file after the other, and with the same servers.
    (
        "tests/flows/test_several_pods.py",
        "tests/flows/test_servers_killed.py",
        "tests/flows/test_modules_apart.py",
        "tests/flows/test_restart.py",
        "tests/plugins/test_chat_pods.py",
        "tests/plugins/test_profiles_pods.py",
    ),
    ("tests/test_cli.py",),
    ("tests/flows/test_matching.py",),
    ("tests/flows/test_killed.py",),
    ("tests/simulate/test_whole_runs.py",),
    # To import the clients of language models takes five seconds.
    ("tests/plugins/test_chat_providers.py", "tests/plugins/test_chat_stream.py"),
    ("tests/rides/test_ride_invariants.py",),
    ("tests/flows/test_openapi.py",),
    ("tests/plugins/test_plugins_killed.py",),
)
"""What takes longest, longest first: begun at the end it would keep one core busy and the other idle.

Files in one line belong to one worker; any other file goes to whoever is free."""
_UNITS = {path: unit for unit, paths in enumerate(FIRST) for path in paths}


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        path: str = super()._split_scope(nodeid)
        return FIRST[_UNITS[path]][0] if path in _UNITS else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    if config.getoption("dist") != "loadfile":
        return None
    # In the order of the items, not by how many tests there are in a file.
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if missing := [path for path in _UNITS if not (config.rootpath / path).exists()]:
        raise pytest.UsageError(f"tests/conftest.py names {', '.join(missing)}, which there is not")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _UNITS.get(Path(item.path).relative_to(config.rootpath).as_posix(), len(FIRST)))
