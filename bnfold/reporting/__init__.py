"""Reports that a person opens in a browser: one self-contained HTML file, plots as inline SVG."""

from __future__ import annotations

from bnfold.reporting.html import write_demo_report, write_fold_report

__all__ = ["write_demo_report", "write_fold_report"]
