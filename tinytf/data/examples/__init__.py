"""Prompts and completions: records of them, conversations as a chat template writes them, examples in windows."""
