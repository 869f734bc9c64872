"""The directions that are probed, and the projection onto them: the only bridge from the model to the criteria.

Imports curvature, eigensolver, criteria and risk; probing and analysis may import it.
"""
