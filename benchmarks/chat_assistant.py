"""The assistant of the chat's benchmark, and the same one streamed by the ASGI server itself, without a bus.

A question ``<chunks> <pause>`` is answered by so many chunks, so many seconds apart.
"""

import argparse
import asyncio
from collections.abc import AsyncGenerator

import uvicorn
from litestar.types import Receive, Scope, Send

from nebengjek.server import _loop_factory
from nebengjek_plugins.chat.assistants.interface import Question, Said, Used
from nebengjek_plugins.chat.tools import Tools

WORD = "kilometre "


async def words(question: str) -> AsyncGenerator[str, None]:
    count, pause = question.split()
    for _ in range(int(count)):
        yield WORD
        # Also with no pause a model's words come over a connection: others get their turn.
        await asyncio.sleep(float(pause))


class Talker:
    async def answer(self, question: Question, tools: Tools) -> AsyncGenerator[Said | Used, None]:
        async for word in words(question.message):
            yield Said(word)
        yield Used(model="talker", tokens_used=1)


async def direct(scope: Scope, receive: Receive, send: Send) -> None:
    """GET /<chunks>/<pause>: the answer as server-sent events."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for word in words(str(scope["path"]).strip("/").replace("/", " ")):
        data = b'event: chunk\ndata: {"chunk":"%b"}\n\n' % word.encode()
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"event: message_complete\ndata: {}\n\n", "more_body": False})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    config = uvicorn.Config(
        direct,
        port=port,
        loop="none",
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve())
