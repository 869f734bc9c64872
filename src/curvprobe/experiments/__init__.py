"""The paper's experiments, one file each, and what they share; :func:`run.run_experiment` runs one."""
