"""Whoever answers questions: one Protocol, and those that come with the plugin."""
