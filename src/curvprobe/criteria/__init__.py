"""From projected examples to criteria: increments, moments, expectations, sample sizes, rankings, verdicts.

Knows no model, no solver and no data: imports the ground only; subspace and all rooms above it may import it.
"""
