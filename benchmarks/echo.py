"""The peer of the location benchmark: a bare ASGI application that sends each text frame back, on the same server."""

import asyncio
import sys
from typing import Any

import uvicorn
import uvloop


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": message["text"]})


if __name__ == "__main__":
    config = uvicorn.Config(
        echo,
        port=int(sys.argv[1]),
        loop="none",
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=65536,
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve())
