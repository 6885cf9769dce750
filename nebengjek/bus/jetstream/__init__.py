"""JetStream on a nats-server; nothing outside of this folder imports nats."""
