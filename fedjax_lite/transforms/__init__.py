"""What happens to a value on the wire."""

from fedjax_lite.transforms.chain import chain, identity
from fedjax_lite.transforms.clip import clip

__all__ = ["chain", "clip", "identity"]
