"""Arithmetic on tensors: inner products, intervals, traces, power laws, rows.

Imports errors only; every room may import it.
"""
