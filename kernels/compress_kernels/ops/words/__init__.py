"""Words: the GPU's form of weights whose codes are integers or small floats of 2 to 8 bits, and the products with it.

``order`` brings codes into 32-bit words; ``launch`` multiplies a few rows by one kernel, and many rows by decoding the weight
and torch's product. The packed, float and affine operators share it.
"""
