"""The run directory: names, lock, events, checkpoints."""
