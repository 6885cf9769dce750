"""NebengJek: a ride-hailing backend, one Litestar app whose modules talk only through a message bus."""
