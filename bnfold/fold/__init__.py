"""The folding engine: recognise affines, plan where they go, and write the result once."""

from bnfold.fold.engine import fold

__all__ = ["fold"]
