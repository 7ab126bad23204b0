"""Checkpoint files: read lazily (`source`), written atomically (`writer`).

Here: headers, shards, journal, output folder. Not here: what a tensor means (`models`, `formats`).
"""
