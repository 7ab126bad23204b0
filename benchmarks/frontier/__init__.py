"""Quality against time of shipped recipes, healed or not: ``python -m benchmarks.frontier``."""
