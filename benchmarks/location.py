"""(a) location.update frames accepted and confirmed per second of one core, against a bare echo of the same frames.

The same server, the same client, the same number of sockets, one frame under way on each. What counts is the CPU
time of the server process, so a busy machine disturbs little: frames per CPU second are what one core does.
Goal: at least 0.35 of the echo.
"""

import argparse
import asyncio
import sys
import time

import httpx
import uvloop

from benchmarks.wire import Child, RawSocket, child, client_frame, free_port, login, nebengjek, open_socket

FRAME = client_frame(
    b'{"event":"location.update","data":{"location":{"latitude":-6.1754,"longitude":106.8272,"accuracy":5,"speed":30}}}'
)
PATIENCE = 120.0
GOAL = 0.35


async def measure(server: Child, tokens: list[str], path: str, wanted: bytes, seconds: float) -> tuple[float, float]:
    """(frames per second, frames per CPU second of the server)."""
    done = 0
    running = True

    def on_text(peer: RawSocket, text: bytes) -> None:
        nonlocal done
        if wanted in text:
            done += 1
            if running:
                peer.send(FRAME)

    sockets = [await open_socket(server.port, path, token, on_text) for token in tokens]
    await idle(server)
    for peer in sockets:
        peer.send(FRAME)
    # Warm-up: the first points of every phone fill caches and are not counted.
    await asyncio.sleep(1.0)
    began, cpu, count = time.perf_counter(), server.cpu(), done
    # The window that is measured.
    await asyncio.sleep(seconds)
    wall, spent, frames = time.perf_counter() - began, server.cpu() - cpu, done - count
    running = False
    for peer in sockets:
        assert peer.transport is not None
        peer.transport.close()
    return frames / wall, frames / spent


async def idle(server: Child) -> None:
    """Until the server has finished greeting: what a connection costs is another figure. TimeoutError: it never is."""
    async with asyncio.timeout(PATIENCE):
        # The CPU time of another process is only there to be looked at: busy is what used a tenth of half a second.
        while True:
            before = server.cpu()
            await asyncio.sleep(0.5)
            if server.cpu() - before < 0.05:
                return


async def logins(server: Child, count: int) -> list[str]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as http:
        return [(await login(http, number))[1] for number in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    port = free_port()
    with child([sys.executable, "-m", "benchmarks.echo", str(port)], port, ready=None) as server:
        tokens = ["none"] * options.sockets
        echo = uvloop.run(measure(server, tokens, "/ws", b"location.update", options.seconds))
    with nebengjek() as server:
        tokens = uvloop.run(logins(server, options.sockets))
        ours = uvloop.run(measure(server, tokens, "/ws", b"location.stored", options.seconds))
    ratio = ours[1] / echo[1]
    print(f"echo       {echo[0]:8.0f} frames/s   {echo[1]:8.0f} per CPU second")
    print(f"nebengjek  {ours[0]:8.0f} frames/s   {ours[1]:8.0f} per CPU second")
    print(f"ratio      {ratio:.2f} (goal {GOAL})")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
