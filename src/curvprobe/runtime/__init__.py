"""What a long computation needs of the machine: memory, progress bars, content hashes, stages and results on disk.

Imports errors and numerics; every room above may import it.
"""
