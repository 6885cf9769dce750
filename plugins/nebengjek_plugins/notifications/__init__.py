"""Notifications: mails that follow from accounts and rides, each once, sent from a work queue."""

from nebengjek_plugins.notifications.module import notifications

__all__ = ["notifications"]
