"""How one budget is spread over the weights of a model.

Here: sensitivity of weights and blocks, and the knapsacks over it. Not here: the search within one weight (`solvers`).
Add a rule: a function from curves to choices, and its name in `recipe.sections`.
"""
