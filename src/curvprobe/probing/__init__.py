"""True and quadratic increments under a probing law: Monte Carlo, the full space, where the quadratic model holds.

Imports subspace and all below it; analysis and experiments may import it.
"""
