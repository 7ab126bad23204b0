"""Cold storage: a finished checkpoint with its codes entropy-coded, byte for byte the same once it is unpacked.

Here: symbols of tensors, their coder, and the files. Add one: another way to split a tensor's bytes goes into `symbols.py`.
"""

from __future__ import annotations

from compress.checkpoint.cold.folder import Packed, pack, unpack

__all__ = ["Packed", "pack", "unpack"]
