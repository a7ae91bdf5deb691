"""Measure the figures of docs/batch_norm.md with the reference transform: ``python docs/batch_norm_figures.py``.

It rewrites what stands between the page's markers. A test holds the two together, so the figures are rounded to what
every machine agrees on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bnfold.batch_norm import RunningStatistics, batch_statistics, forward_training

PAGE = Path(__file__).parent / "batch_norm.md"

_DRAWS = 200_000


def jacobian_table() -> str:
    """How many directions of a batch's change the transform lets through, by the rank of its Jacobian."""
    rows = ["| elements m of a channel | directions in | directions out |", "|---:|---:|---:|"]
    for m in (2, 3, 4, 8, 32):
        forward = forward_training(np.random.default_rng(m).standard_normal((m, 1)), np.ones(1), np.zeros(1), eps=0.0)
        jacobian = np.stack([forward.backward(row[:, None]).x[:, 0] for row in np.eye(m)])
        rank = int((np.linalg.svd(jacobian, compute_uv=False) > 1e-9).sum())
        rows.append(f"| {m} | {m} | {rank} |")
    return "\n".join(rows)


def noise_table() -> str:
    """What the statistics of a batch of standard normal elements are worth as estimates."""
    rows = [
        "| m | mean of σ² | (m − 1)/m | mean of the unbiased variance | spread of μ | spread of σ |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for m in (2, 4, 8, 32, 128):
        draws = np.random.default_rng(m).standard_normal((m, _DRAWS * 2 // m))
        statistics = batch_statistics(draws)  # each column is a batch
        rows.append(
            f"| {m} | {statistics.var.mean():.2f} | {(m - 1) / m:.2f} | {statistics.unbiased_var.mean():.2f} "
            f"| {statistics.mean.std():.2f} | {np.sqrt(statistics.var).std():.2f} |"
        )
    return "\n".join(rows)


def memory_table() -> str:
    """What a moving average remembers, and how sure it is of a mean that stands still."""
    rows = [
        "| momentum α | half of the weight is on the last | as sure as the mean of | of the start, left after 100 |",
        "|---:|---:|---:|---:|",
    ]
    for momentum in (0.1, 0.01):
        running = RunningStatistics(np.ones(1), np.ones(1))
        nothing = batch_statistics(np.zeros((2, 1)))
        for _ in range(100):
            running = running.updated(nothing, momentum)
        half = int(np.ceil(np.log(0.5) / np.log(1 - momentum)))
        alike = round((2 - momentum) / momentum)
        rows.append(f"| {momentum} | {half} batches | {alike} batches | {float(running.mean[0]):.5f} |")
    return "\n".join(rows)


#: Each marked part of the page, and what makes it.
PARTS = {"jacobian": jacobian_table, "noise": noise_table, "memory": memory_table}


def page(text: str) -> str:
    """The page with its marked parts made anew."""
    for name, table in PARTS.items():
        start = text.index(f"<!-- figures: {name} -->\n") + len(f"<!-- figures: {name} -->\n")
        end = text.index("<!-- end -->", start)
        text = f"{text[:start]}{table()}\n{text[end:]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
