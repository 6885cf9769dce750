"""The message bus: one implementation of every policy over two brokers, memory and NATS JetStream."""
