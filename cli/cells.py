"""Cells of tables, in which a name that is longer than a line breaks where its parts end."""

from __future__ import annotations

import re
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.containers import Lines
from rich.text import Text

from bnfold.line_breaks import parts_of, pieces_of


class Cell(Text):
    """Plain text that breaks between words, and inside of one only where it is longer than a line."""

    def wrap(self, console: Console, width: int, **options: Any) -> Lines:
        """See :meth:`rich.text.Text.wrap`."""
        if options.get("no_wrap"):
            return super().wrap(console, width, **options)
        return Text(with_line_ends(self.plain, width), self.style).wrap(console, width, **options)


def with_line_ends(text: str, width: int) -> str:
    """``text`` with the line ends inside of its words that lines of ``width`` need; those at spaces are left out."""
    result = ""
    for word in re.split(r"(\s+)", text):
        if cell_len(word) <= width or word.isspace():
            result += word
        else:
            result = "\n".join([*filter(None, [result.rstrip()]), *_lines(word, width)])
    return result


def _lines(word: str, width: int) -> list[str]:
    lines = [""]
    for part in parts_of(word):
        small = [part] if cell_len(part) <= width else pieces_of(part)
        for piece in small:
            for chunk in [piece] if cell_len(piece) <= width else chop_cells(piece, width):
                if cell_len(lines[-1]) + cell_len(chunk) > width:
                    lines.append("")
                lines[-1] += chunk
    return lines
