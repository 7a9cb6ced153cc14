"""One small callback per file."""
