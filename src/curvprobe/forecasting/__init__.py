"""Forecasts of what more data takes off the test loss, from models trained anew on parts of the sample.

Imports subspace and below; analysis, plots, the command and benchmarks may import it. It knows nothing of the criteria
and they know nothing of it: how stable the landscape is and whether the model is short of data are two questions.
"""
