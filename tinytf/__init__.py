"""tinytf: text in, a small transformer language model out."""

__version__ = "0.1.0"
