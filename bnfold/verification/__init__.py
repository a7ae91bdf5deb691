"""Decide whether two models compute the same function, and say how sure that is."""

from __future__ import annotations

from bnfold.verification.comparison import record_golden, verify, verify_golden
from bnfold.verification.options import VerifyOptions
from bnfold.verification.result import VerifyResult

__all__ = ["VerifyOptions", "VerifyResult", "record_golden", "verify", "verify_golden"]
