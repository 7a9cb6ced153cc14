"""The network, pure PyTorch: no Lightning, no files."""

from tinytf.model.config import ConfigurationError, RopeScaling, TransformerConfig
from tinytf.model.transformer import KVCache, Transformer

__all__ = ["ConfigurationError", "KVCache", "RopeScaling", "Transformer", "TransformerConfig"]
