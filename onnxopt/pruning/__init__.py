"""Pruning that keeps the quality: which units matter, how many to keep of each group, and repair without training."""
