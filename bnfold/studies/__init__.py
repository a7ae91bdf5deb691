"""The claims made for batch norm, measured again: each with its source, an interval over seeds, and a verdict.

Every experiment is a pure function from a laboratory (data, seeds, sizes) to an outcome, which is data: findings,
tables, charts. A verdict follows from a finding's interval and the values that its claim allows, and from nothing
else. Networks are small perceptrons on scikit-learn's digits, so that the whole takes minutes on a laptop; what that
cannot show, each page says.

Importing this package imports no torch; :func:`study` does when it is called.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.extras import require
from bnfold.files import StrPath, check_output_file, output_folder
from bnfold.progress import Progress, silent
from bnfold.studies.options import EXPERIMENTS, StudyOptions
from bnfold.studies.result import Finding, Outcome, StudyResult, Verdict

__all__ = ["EXPERIMENTS", "Finding", "Outcome", "StudyOptions", "StudyResult", "Verdict", "study"]


def study(folder: StrPath, options: StudyOptions | None = None, progress: Progress = silent) -> StudyResult:
    """Run experiments, and write a page of tables and plots for each, and one that sums them up.

    The folder gets ``index.html`` and ``README.md``; for each experiment ``NAME.html``, ``NAME.md`` and ``NAME.png``;
    and ``study.json``. The same options give the same figures on the same machine, but for times.

    Args:
        folder: where the pages go; made if it does not exist.
        options: see :class:`StudyOptions`.
        progress: called as the experiments go on.

    Raises:
        OutputError: the folder cannot be written, or holds a README.md or an index.html of something else.
        MissingExtraError: a package of the extras ``train``, ``plot`` or ``cpu`` is missing.
    """
    options = options or StudyOptions()
    for module, extra in (
        ("torch", "train"), ("sklearn", "train"), ("scipy", "cpu"), ("matplotlib", "plot"), ("jinja2", "plot"),
    ):  # fmt: skip
        require(module, extra)
    from bnfold.reporting.study_pages import write_study
    from bnfold.studies.laboratory import Laboratory
    from bnfold.studies.task import digits

    outcomes: list[Outcome] = []
    with output_folder(folder) as place, _one_thread():
        _check_is_ours(place)
        check_output_file(place / "index.html")  # now, not after an hour
        lab = Laboratory(digits(), tuple(range(options.repetitions)), options.quick, progress)
        for name in options.chosen:
            started = time.process_time()
            progress("experiments", len(outcomes), len(options.chosen))
            outcome: Outcome = import_module(EXPERIMENTS[name]).run(lab.at(name))
            outcomes.append(replace(outcome, seconds=time.process_time() - started))
        progress("experiments", len(outcomes), len(options.chosen))
        result = StudyResult(place, options.repetitions, options.quick, tuple(outcomes))
        write_study(result)
    return result


def _check_is_ours(place: Path) -> None:
    """Refuse a folder whose README.md or index.html is nobody's study, for both are written."""
    for name, mark in (("README.md", b"# The claims made for batch norm"), ("index.html", b"<title>bnfold study")):
        page = place / name
        if page.is_file() and mark not in page.read_bytes():
            raise OutputError(f"{page} is there already and would be lost; give a folder for the pages alone")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processor time means something, and results do not depend on how work was shared, with one thread only."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
