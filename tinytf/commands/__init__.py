"""One file a command, and what they share with each other alone."""
