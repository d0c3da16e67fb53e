"""The run directory: file names, lock, events, training state, checkpoints, and `Run.open`."""
