"""The whole job: its stages in order, the results with their texts and records, and how they are read back.

Imports all rooms below it; plots, tasks, experiments and the command may import it.
"""
