"""What is written down about a run: numbers, text, where it comes from."""
