"""Saving durably, loading safely, resuming exactly, naming (best, last)."""
