"""The ``bnfold`` command, and ``python -m bnfold``: light, so that Ctrl-C is orderly while the rest is imported too."""

import sys


def run() -> None:
    """Entry point of the console script."""
    try:
        from bnfold.cli.main import run as program

        program()
    except KeyboardInterrupt:
        sys.stderr.write("bnfold: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    run()
