"""Parity: how far an artifact is from the model it was made from, measured in its own runtime."""
