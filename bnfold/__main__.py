"""``python -m bnfold``: the same program as the ``bnfold`` command."""

from bnfold.cli.main import run

if __name__ == "__main__":
    run()
