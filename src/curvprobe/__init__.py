"""How much the loss landscape around a trained solution still moves when data is added, and in which directions.

The public names stand in ``__init__.pyi``; each is loaded at its first use, so that work on saved projections loads
neither models nor solvers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
