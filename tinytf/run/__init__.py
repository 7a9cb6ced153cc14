"""The door to a run on disk: run directory, lock, recovery, journal, checkpoints."""
