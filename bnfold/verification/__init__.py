"""Decide whether two models compute the same function, and say how sure that is."""

from __future__ import annotations

from bnfold.verification.comparison import VerifyOptions, verify
from bnfold.verification.result import VerifyResult

__all__ = ["VerifyOptions", "VerifyResult", "verify"]
