"""A model, a loss and a sample: how they are called, checked, measured and left as they were.

Imports the ground (numerics, runtime, losses, errors) only; curvature and all rooms above it may import it.
"""
