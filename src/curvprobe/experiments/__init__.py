"""The paper's experiments, one file each, and what they share; :func:`run.run_experiment` runs one.

Imports everything below it; only the command's ``experiment`` and the benchmarks import it.
"""
