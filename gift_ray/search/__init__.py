"""The search for the best trade-off: what it tries next, what it costs, how its best is confirmed."""
