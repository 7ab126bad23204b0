"""GPFQ, a solver for Compress in a package of its own."""
