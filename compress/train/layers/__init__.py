"""Layers that learn small: what stands in the place of a model's linear layers while it is trained, and how it is stored."""
