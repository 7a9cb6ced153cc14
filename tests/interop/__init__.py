"""Exported models in the programs that others run them with: `make interop`."""
