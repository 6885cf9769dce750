"""Chat: questions answered in a stream by workers, and the two parties of a ride writing to each other."""

from nebengjek_plugins.chat.module import chat

__all__ = ["chat"]
