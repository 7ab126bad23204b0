"""The order of the steps and the loop over the blocks.

Here: `steps` (checkpoint → calibrate → solve → export), `run` (all blocks), `block` (one block), `weight` (one weight).
Not here: any method. Add a step: in `steps`, the only file that knows their order.
"""
