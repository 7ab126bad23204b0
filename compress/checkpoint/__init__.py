"""Reading checkpoints lazily (`source`) and writing them atomically (`writer`)."""
