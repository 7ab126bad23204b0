"""Tracing: the coordinate spaces of a model, found by watching one forward on the meta device, operator by operator.

Here: labels of tensor dimensions, a rule for each operator, and the spaces that result. Not here: the rotation itself. A new
operator is a function in the file of its kind and a line in ``operators``.
"""

from .spaces import Norm, Reader, Rotatable, Spaces, Writer
from .trace import find_spaces

__all__ = ["Norm", "Reader", "Rotatable", "Spaces", "Writer", "find_spaces"]
