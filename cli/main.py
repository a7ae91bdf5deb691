"""The ``bnfold`` program: its commands, and how an exception becomes an exit code.

Exit codes: 0 done; 1 ran, and the answer is no; 2 wrong usage; 3 bad input or environment; 130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

import click

#: Each command with the sentence that `bnfold --help` shows. The modules are imported on first use only.
COMMANDS = {
    "demo": "The main job on real data, start to end.",
    "models": "List the networks, and how large they are.",
    "train": "Train a batch-normalized network.",
    "export": "Export a trained network to ONNX, batch norm kept.",
    "recalibrate": "Put statistics of the training set in place of moving averages.",
    "inspect": "List each batch norm: foldable or not, how, and why not.",
    "optimize": "Fold every batch norm that algebra lets fold.",
    "verify": "Decide whether two models compute the same function.",
    "benchmark": "Compare the latency of models.",
    "predict": "Run a model over a data set.",
    "deploy": "Put a model into a repository for Triton and KServe.",
    "serve": "Answer requests over the Open Inference Protocol, by HTTP and gRPC.",
    "study": "Measure again what is claimed for batch norm.",
    "doctor": "Tell what this machine can run, and how to mend what it cannot.",
}


class _ReaderGoneError(Exception):
    """Whoever read the output has stopped reading: ``bnfold … | head``."""


class _LazyGroup(click.Group):
    """A group whose commands live in ``bnfold.cli.NAME`` and are imported when they are run."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error  # before click makes it an exit code that means "no"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"bnfold.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from importlib import metadata  # slow to import, and seldom needed

        click.echo(f"bnfold {metadata.version('bnfold')}")
        context.exit()


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
              help="Show the version and exit.")  # fmt: skip
def bnfold() -> None:
    """Fold batch norms out of ONNX models, prove the result, measure what it gained."""


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    from bnfold.errors import BnfoldError, OptionError

    state = {"debug": False}
    try:
        # With standalone_mode off, an exit code that a command asks for comes back as the value.
        code = bnfold.main(arguments, prog_name="bnfold", standalone_mode=False, obj=state)
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told of
    except click.ClickException as error:
        with suppress(OSError):  # nobody reads it; the exit code tells all the same
            error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return 130
    except (_ReaderGoneError, BrokenPipeError):
        # End quietly, with the code of a program that SIGPIPE ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ImportError as error:
        # Ctrl-C while a compiled module, onnxruntime's for one, is loaded comes out as this.
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        _say("interrupted")
        return 130
    except (MemoryError, RecursionError) as error:
        if state["debug"]:
            raise
        _say(_too_much(error))
        return 3
    except OSError as error:
        if state["debug"]:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}")
        return 3
    except BnfoldError as error:
        if state["debug"]:
            raise
        _say(str(error))
        return 2 if isinstance(error, OptionError) else 3
    return code if isinstance(code, int) else 0


def _say(sentence: str) -> None:
    with suppress(OSError):  # nobody reads it; the exit code tells all the same
        click.echo(f"bnfold: {sentence}", err=True)


def _too_much(error: MemoryError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "something given is nested too deeply to be read; it is damaged, or no such file (--debug tells where)"
    what = f": {error}" if str(error) else ""
    return f"there is not enough memory{what}; give less at once, or close other programs"


def run() -> None:
    """Run the program and exit; :func:`bnfold.__main__.run` is what the console script calls."""
    _open_closed_streams()
    _print_anything()
    # What bnfold has to say it says itself; without a handler, libraries' warnings would go to stderr.
    logging.getLogger().addHandler(logging.NullHandler())
    # An orderly end, so that half-written files are cleaned away.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    sys.exit(main())


def _open_closed_streams() -> None:
    """Where a standard stream was closed (``>&-``), give it to the null device: or a file would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _print_anything() -> None:
    """A terminal that lacks an arrow shows "?", and the name of a file that is no text its bytes, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            whole = stream.encoding.lower().startswith("utf")
            stream.reconfigure(errors="backslashreplace" if whole else "replace")
