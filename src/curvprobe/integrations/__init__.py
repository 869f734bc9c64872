"""Callbacks for training loops that others wrote; each needs its framework, and is imported by its own name.

Imports the monitor, its figure and what is below; nothing imports it.
"""
