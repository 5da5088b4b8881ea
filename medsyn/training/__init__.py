"""Loops that change weights, and the checkpoints they continue from."""
