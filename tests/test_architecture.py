"""What is installed, and what every file of ours has in common. Who may import whom is checked by import-linter."""

import ast
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("nebengjek", "plugins/nebengjek_plugins", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
SHIPPED = [path for path in SOURCES if path.is_relative_to(ROOT / "nebengjek") or path.is_relative_to(ROOT / "plugins")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the wheel and the dependencies, but without this folder: -S skips the editable install."""
    path = f"{installed}:{sysconfig.get_path('purelib')}:{sysconfig.get_path('platlib')}"
    env = {"PYTHONPATH": path, "COLUMNS": "200", "PATH": ""}
    command = [sys.executable, "-S", "-W", "error", *words]
    return subprocess.run(command, cwd=installed, env=env, capture_output=True, text=True, check=False)


def test_the_wheel_installs_two_names_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"nebengjek", "nebengjek_plugins"}


def test_everything_that_is_needed_is_in_the_wheel(installed: Path) -> None:
    shipped = {str(path.relative_to(ROOT)) for path in SHIPPED if path.is_relative_to(ROOT / "nebengjek")}
    assert shipped <= {str(path.relative_to(installed)) for path in installed.rglob("*.py")}
    version = run(installed, "-m", "nebengjek", "--version")
    assert version.stdout.startswith("nebengjek, version"), version.stderr
    upgraded = run(installed, "-m", "nebengjek", "db", "upgrade")
    assert upgraded.stdout.startswith("empty → "), upgraded.stderr


@pytest.mark.parametrize("name", ["plugins", "settings", "tests", "benchmarks"])
def test_no_generic_name_is_installed(installed: Path, name: str) -> None:
    done = run(installed, "-c", f"import {name}")
    assert f"No module named '{name}'" in done.stderr


def tracked() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found = [ROOT / name for name in done.stdout.split("\0") if name]
    else:  # a release without its history
        hidden = (".venv", "__pycache__", ".git")
        found = [path for path in ROOT.rglob("*") if not any(part in hidden for part in path.parts)]
    return [path for path in found if path.is_file()]


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the affair of whoever installs: their pip knows."""
    hosts = re.compile(r"pypi\.(org|python)|pythonhosted|registry\.npmjs|(docker|ghcr|quay)\.io|--(extra-)?index-url")
    # This file has to spell them.
    named = [
        path.relative_to(ROOT)
        for path in tracked()
        if path != Path(__file__) and hosts.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert named == []


def test_no_file_is_a_secret_or_a_database() -> None:
    names = [path.name for path in tracked()]
    assert not [name for name in names if re.search(r"\.(sqlite3?|db|pem|key|creds|lock)$|^\.env$|\.env$", name)]


def faults(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = []
    if text.strip() and not ast.get_docstring(tree):
        found.append("no docstring")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            found.append("annotations must be real at run time")
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append("imports are absolute")
        if isinstance(node, (ast.Name, ast.alias)) and "TYPE_CHECKING" in (
            getattr(node, "id", ""),
            getattr(node, "name", ""),
        ):
            found.append("msgspec and Litestar read annotations at run time")
    return found


def test_every_file_begins_with_a_sentence_and_imports_for_real() -> None:
    assert len(SOURCES) > 50
    found = {str(path.relative_to(ROOT)): faults(path) for path in SOURCES}
    assert {path: said for path, said in found.items() if said} == {}


def test_files_are_short_as_a_rule() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in SHIPPED]
    assert median(length for length in lengths if length > 3) <= 150
