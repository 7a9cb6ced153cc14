"""The notebooks, executed: by the tests, and by `make notebooks`, which keeps their outputs."""
