"""The network, pure PyTorch: no Lightning, no files."""

from tinytf.model.cache import KVCache
from tinytf.model.config import TransformerConfig
from tinytf.model.transformer import Transformer

__all__ = ["KVCache", "Transformer", "TransformerConfig"]
