"""Text out: a model and its tokenizer together, for the command line and for Python."""
