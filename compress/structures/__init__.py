"""The structures a compressed weight may have."""
