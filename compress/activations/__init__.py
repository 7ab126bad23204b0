"""Activations: ranges of the inputs of layers, and the scales that are calibrated from them.

Here: the observers that choose a range from a histogram of inputs. Not here: that histogram, which is a statistic (``score``);
the rounding itself, which a server needs too (``compress_kernels.activations``); its simulation while a model is calibrated
(``calibrate``). A new observer is a dataclass with ``range`` and a line in the registry.
"""
