"""What is embedded in a process has one process: the second is refused, the next after its death is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from nebengjek.errors import Misconfigured
from nebengjek.lock import exclusive, lock_path

HOLD = """
import sys
from pathlib import Path
from nebengjek.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_lies_beside_the_database() -> None:
    assert lock_path(Path("/data/nebengjek.sqlite3")) == Path("/data/nebengjek.sqlite3.lock")


def test_another_process_is_refused_until_the_holder_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(Misconfigured, match=rf"x\.lock is held by process {holder.pid}:.*NATS_URL"),
            exclusive(path),
        ):
            pytest.fail("both hold it")
        holder.kill()
        holder.wait()
        with exclusive(path):
            pass


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"database\.url: .*nowhere"), exclusive(tmp_path / "nowhere" / "x.lock"):
        pytest.fail("made it")
