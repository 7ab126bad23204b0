"""The order of the steps and the loop over the blocks.

Here: `steps` (`plan` and `compress`), `prepare` (all that comes before the first weight is solved), `run` (all blocks), `block`
(one block), `weight` (one weight). Not here: any method. Add a step before solving: in `prepare`; after it: in `run`.
"""
