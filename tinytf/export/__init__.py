"""One file per target format, and the one proof they all must pass."""
