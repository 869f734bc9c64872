"""Callbacks for training loops that others wrote; each needs its framework, and is imported by its own name.

Imports the monitor and what is below it; nothing imports it.
"""
