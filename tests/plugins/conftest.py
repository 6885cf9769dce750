"""Tests of plugins use the worlds of the flow tests: an application on its own stores, embedded or real."""

from tests.flows.conftest import backend, embedded, real_servers, runner, sqlite_template

__all__ = ["backend", "embedded", "real_servers", "runner", "sqlite_template"]
