"""Products with the Hessian and its kin, and single examples' derivatives in a subspace.

Imports risk and the ground; subspace, probing and analysis may import it.
"""
