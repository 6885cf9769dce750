"""The history of the tables of notifications, apart from the application's."""

from pathlib import Path

from nebengjek.module import History

HISTORY = History(name="notifications", folder=Path(__file__).parent / "versions", head="0003")
"""``head``: the newest script; a test compares."""
