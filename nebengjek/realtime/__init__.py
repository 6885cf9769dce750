"""Which phone is connected where, and what it must not miss."""
