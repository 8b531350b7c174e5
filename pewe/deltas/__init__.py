"""Stacks of delta modules on a frozen T5: their kinds, tensors and checkpoints."""
