"""README and docs/: `make docs` writes the tables made from the code; the tests compare them and run every command."""
