"""JetStream in this process: streams and consumers with the semantics of a nats-server, and nothing on disk."""
