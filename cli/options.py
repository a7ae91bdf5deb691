"""Options that more than one command takes, spelled and parsed alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

#: ONNX Runtime's graph optimization levels, from all to none; a test holds them against the library's.
LEVELS = ("all", "extended", "basic", "disable")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def parse_sizes(text: str) -> tuple[int, ...] | None:
    """``3,224,224`` as numbers of at least 1; None where it is something else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        return None
    return tuple(int(part) for part in parts)


def _named_shapes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """``NAME=1,3,224,224`` as a name and its sizes; ``NAME=`` is a scalar."""
    shapes = {}
    for value in values:
        name, _, text = value.rpartition("=")
        sizes = parse_sizes(text) if text else ()
        if not name or sizes is None:
            raise click.BadParameter(f"{value!r} is not of the form NAME=1,3,224,224", context, parameter)
        shapes[name] = sizes
    return shapes


def report_files(*suffixes: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[Path, ...]]:
    """A callback for the paths of reports, in an option that may be repeated; a suffix names a format."""

    def parse(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Path, ...]:
        return tuple(_report_path(context, parameter, value, suffixes) for value in values)

    return parse


def _report_path(context: click.Context, parameter: click.Parameter, value: str, suffixes: tuple[str, ...]) -> Path:
    path = Path(value)
    if path.suffix.lower() not in suffixes:
        known = ", ".join(suffixes)
        raise click.BadParameter(f"{value!r} has no known suffix; use one of {known}", context, parameter)
    return path


def input_shapes(command: _Command) -> _Command:
    """``--input-shape NAME=SIZES``, repeatable; the command gets ``shapes``, a dict."""
    return click.option(
        "--input-shape",
        "shapes",
        multiple=True,
        metavar="NAME=SIZES",
        callback=_named_shapes,
        help="Shape of an input whose sizes the model leaves open, such as x=1,3,224,224; may be repeated.",
    )(command)
