"""The only place of bnfold that prints.

What a person asked for (tables, sentences) goes to stdout, progress and warnings to stderr. With ``--json``,
stdout carries exactly one JSON document and all that is meant for people moves to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from bnfold.progress import Progress


@dataclass
class Output:
    """Where a command's results go, made from the options that all commands share.

    Attributes:
        as_json: one JSON document on stdout, nothing else there.
        quiet: nothing for people but errors.
        verbose: more detail in tables.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    exit_code: int = field(default=0, init=False)
    _stdout: TextIO = field(default_factory=lambda: sys.stdout, init=False)
    _bar_console: Console | None = field(default=None, init=False)

    def _console(self, *, stderr: bool) -> Console:
        from rich.console import Console

        class PlainConsole(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # rich would end the program as if its answer were "no"

        stream = sys.stderr if stderr else sys.stdout
        # Piped tables are not squeezed into the 80 columns that rich assumes for a pipe.
        width = None if stream.isatty() or "COLUMNS" in os.environ else 110
        return PlainConsole(file=stream, width=width, highlight=False)

    def show(self, renderable: RenderableType) -> None:
        """Print a table for people."""
        if not self.quiet:
            self._console(stderr=self.as_json).print(renderable)

    def say(self, sentence: str = "", style: str = "") -> None:
        """Print a sentence for people: plain text, whatever brackets a path or a model's name may hold."""
        if not self.quiet:
            _print_sentence(self._console(stderr=self.as_json), sentence, style)

    def remark(self, sentence: str) -> None:
        """Print on stderr how long work goes, above the progress bar if there is one."""
        if not self.quiet:
            # Only the bar's own console moves the bar out of the way.
            _print_sentence(self._bar_console or self._console(stderr=True), sentence, "")

    def warn(self, message: str) -> None:
        """Print a warning on stderr."""
        if not self.quiet:
            _print_sentence(self._console(stderr=True), f"warning: {message}", "yellow")

    def document(self, document: Any) -> None:
        """Print the command's JSON document, if ``--json`` was given."""
        if self.as_json:
            json.dump(document, self._stdout, indent=2, allow_nan=False)
            self._stdout.write("\n")

    def line(self, document: Any) -> None:
        """Print the command's JSON document at once and on one line, for those who read while the command goes on."""
        if self.as_json:
            self._stdout.write(json.dumps(document, allow_nan=False) + "\n")
            self._stdout.flush()

    def answer_no(self) -> None:
        """Make the command exit with 1: it ran, and the answer is no."""
        self.exit_code = 1

    @contextmanager
    def progress(self, rate: str = "") -> Iterator[Progress]:
        """A callback for the library's long work: a bar on a terminal once two seconds have passed.

        Args:
            rate: the unit of the speed to show beside it; empty for no speed.
        """
        if self.quiet or not sys.stderr.isatty():
            from bnfold.progress import silent

            yield silent
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *([TextColumn(f"{{task.fields[speed]}} {rate}")] if rate else []),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self._console(stderr=True),
            transient=True,
        )
        tasks: dict[str, Any] = {}
        started = time.monotonic()

        def report(stage: str, done: int, total: int) -> None:
            if not bars.live.is_started and time.monotonic() - started > 2:
                bars.start()
            if stage not in tasks:  # what was done before the first call took none of this run's time
                tasks[stage] = bars.add_task(stage, total=total or None, completed=done, speed="–")
            bars.update(tasks[stage], completed=done, total=total or None)
            speed = bars.tasks[bars.task_ids.index(tasks[stage])].speed
            if speed is not None:
                bars.update(tasks[stage], speed=f"{speed:,.0f}")

        self._bar_console = bars.console
        try:
            yield report
        finally:
            self._bar_console = None
            bars.stop()


def _print_sentence(console: Console, sentence: str, style: str) -> None:
    from rich.text import Text

    # In a pipe a sentence stays on one line, so that it can be searched.
    console.print(Text(sentence, style), soft_wrap=not console.is_terminal)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    fixed: Sequence[str] = (),
) -> RenderableType:
    """A table that wraps to the terminal's width, or a list where it would have to cut numbers to fit.

    Args:
        title: printed above the table.
        columns: the headings.
        rows: the cells; each is shown as ``str``, rich markup in it is not interpreted.
        right: headings of the columns to align right (numbers).
        fixed: headings of the columns that must not wrap.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bnfold.cli.cells import Cell

    cells = [[cell if isinstance(cell, Text) else Cell(str(cell)) for cell in row] for row in rows]
    result = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    needed = 1
    for index, column in enumerate(columns):
        whole = column in fixed or column in right
        result.add_column(column, justify="right" if column in right else "left", no_wrap=whole, overflow="fold")
        widest = max([len(column), *(row[index].cell_len for row in cells)])
        needed += 3 + (widest if whole else min(widest, _NARROWEST))
    for row in cells:
        result.add_row(*row)
    return _Fitting(result, needed, title, columns, cells)


#: A column that wraps is not squeezed below this.
_NARROWEST = 12


@dataclass(frozen=True)
class _Fitting:
    """A table; or a list of its rows, one cell below the other, where the terminal is too narrow for it.

    Attributes:
        wide: the table.
        needed: the width from which on no number is cut.
        title: above it.
        columns: its headings.
        cells: its rows.
    """

    wide: Table
    needed: int
    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[Text]]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        if options.max_width >= self.needed:
            yield self.wide
            return
        yield Text(self.title)
        for row in self.cells:
            record = Table.grid(padding=(0, 2), pad_edge=False)
            record.add_column(overflow="fold")
            record.add_column(overflow="fold")
            for column, cell in zip(self.columns, row, strict=True):
                if cell.plain:
                    record.add_row(Text(column, "dim"), cell)
            yield record
            yield Text()


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json``, ``--quiet``, ``--verbose``, ``--debug``; the first argument becomes an Output."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
    @click.option("-v", "--verbose", is_flag=True, help="Print more detail.")
    @click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_remember_debug,
                  help="Show the traceback of an error.")  # fmt: skip
    @click.pass_context
    @wraps(command)
    def wrapper(
        context: click.Context, /, *args: Any, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any
    ) -> None:
        output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
        # What a user's own network prints while it is built or run must not end up in the document.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            command(output, *args, **kwargs)
        context.exit(output.exit_code)

    return wrapper


def _remember_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if value:
        context.find_root().obj["debug"] = True
    return value
