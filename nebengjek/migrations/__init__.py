"""The database's schema over time (Alembic); one history for SQLite and PostgreSQL."""

HEAD = "0004"
"""The newest revision; a test compares it with the scripts."""
