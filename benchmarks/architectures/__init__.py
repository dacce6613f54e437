"""Well-known architectures with random weights: how they are built, and what can be removed from them.

Only `expected` is free of torch, and nothing here imports it in passing.
"""
