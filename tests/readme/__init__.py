"""README's tables, made from the code: `make docs` writes them, a test compares them."""
