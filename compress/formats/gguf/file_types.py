"""llama.cpp's number for the mix of types in a file (``enum llama_ftype``): what its loader prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

FILE_TYPES: dict[torch.dtype | str, int] = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 32,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 14,
    "q5_k": 16,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "mxfp4": 38,
}


def file_type_of(types: Sequence[torch.dtype | str]) -> int:
    """The number of the type that most tensors have, fp32 aside, which every file has for its vectors."""
    counts = Counter(kind for kind in types if kind is not torch.float32)
    return FILE_TYPES[counts.most_common(1)[0][0]] if counts else 0
