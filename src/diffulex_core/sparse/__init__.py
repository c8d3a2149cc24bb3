"""The sparse cache of fixed-length generation: steps that feed one block and read kept K/V of all the rest.

`config` says how a request wants it, `phases` which steps are which, `state` keeps count for one canvas, and `policy`
chooses what is kept. Importing the package imports no torch.
"""

from diffulex_core.sparse.config import SparseConfig

__all__ = ["SparseConfig"]
