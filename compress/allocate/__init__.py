"""How one budget is spread over the weights of a model."""
