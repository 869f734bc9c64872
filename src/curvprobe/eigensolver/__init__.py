"""Certified extreme eigenpairs of any symmetric matrix that is known by its products.

Knows no model: imports the ground only; subspace may import it, and whoever needs its settings.
"""
