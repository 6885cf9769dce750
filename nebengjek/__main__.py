"""``python -m nebengjek``: the same as the command ``nebengjek``."""

from nebengjek.cli import main

main()
