"""Alembic's entry: runs the migrations on the connection that ``nebengjek.schema`` hands in."""

from alembic import context
from sqlalchemy import Connection

from nebengjek.sql import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, user_module_prefix="")
with context.begin_transaction():
    context.run_migrations()
