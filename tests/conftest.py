"""How tests run: an ``async def`` test runs in a fresh event loop, or in that of its fixture ``runner``."""

import asyncio
import inspect
from contextlib import nullcontext
from contextvars import copy_context

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    shared = pyfuncitem.funcargs.get("runner")
    with nullcontext(shared) if isinstance(shared, asyncio.Runner) else asyncio.Runner() as runner:
        # A context of its own, or a runner would carry one test's trace into the next.
        runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}), context=copy_context())
    return True
