"""Every figure of the README, one after the other; exits non-zero when one misses its goal."""

import subprocess
import sys

RUNS = (
    ["benchmarks.location"],
    ["benchmarks.matching"],
    ["benchmarks.matching", "--backend", "real"],
    ["benchmarks.rides"],
    ["benchmarks.rides", "--backend", "real"],
    ["benchmarks.sockets"],
    ["benchmarks.sockets", "--pods"],
    ["benchmarks.sockets", "--deflate"],
    ["benchmarks.chat"],
    ["benchmarks.chat", "--backend", "real"],
    ["benchmarks.accounts"],
    ["benchmarks.accounts", "--backend", "real"],
    ["benchmarks.bus"],
)

if __name__ == "__main__":
    worst = 0
    for run in RUNS:
        print(f"\n$ python -m {' '.join(run)}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, "-m", *run]).returncode)
    raise SystemExit(worst)
