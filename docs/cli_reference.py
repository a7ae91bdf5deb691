"""Write docs/cli.md from the program's own help: ``python docs/cli_reference.py``. A test holds the two together."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold.cli.main import COMMANDS, bnfold

HEAD = """# Command line

Every command is one function of the library. Exit codes: 0 done; 1 ran, and the answer is no (a mismatch, slower than
allowed, `--strict` and a batch norm left); 2 wrong usage; 3 bad input or environment (one sentence says what, where
and what to do); 130 interrupted; 141 the reader of a pipe has
gone. With `--json`, stdout carries one JSON document and nothing else.

This page is generated from `--help`; do not edit it.
"""


def reference() -> str:
    """The page's text."""
    parent = click.Context(bnfold, info_name="bnfold", **bnfold.context_settings)
    parts = [HEAD]
    for name in COMMANDS:
        command = bnfold.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
        parts.append(f"## bnfold {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(reference(), encoding="utf-8")
