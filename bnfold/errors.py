"""Every exception that bnfold raises on purpose.

::

    BnfoldError              the root: one sentence that says what, where and what to do
    ├── InputError           something that the caller gave cannot be used
    │   ├── OptionError      an option of a call that is out of range, or contradicts another
    │   ├── ModelError       an ONNX file that is missing, damaged, unsafe or not supported
    │   ├── DataError        a data set that is missing or not laid out as was said
    │   ├── CheckpointError  weights that are missing, damaged or for another architecture
    │   └── RepositoryError  a model repository that is damaged, was tampered with, or is none
    ├── OutputError          a result that cannot be written where it was asked for
    ├── SetupError           this machine lacks something
    │   ├── MissingExtraError    a package of an extra is not installed
    │   └── ProviderError        an execution provider that is absent or does not run
    └── WorkerError          a worker process failed or was killed

A refusal to fold is not an error: it is a :class:`bnfold.fold.report.Reason`.
The command line turns every :class:`BnfoldError` into exit code 3 and its message.
"""

from __future__ import annotations


class BnfoldError(Exception):
    """Root of all errors that bnfold raises on purpose; the message is one sentence for a user."""


class InputError(BnfoldError):
    """Something that the caller gave cannot be used."""


class OptionError(InputError):
    """An option of a call is out of range, or contradicts another; the command line exits with 2, wrong usage."""


class ModelError(InputError):
    """An ONNX model is missing, damaged, unsafe to load or not supported."""


class DataError(InputError):
    """A data set is missing or is not laid out as was said."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or belongs to another architecture."""


class RepositoryError(InputError):
    """A model repository is missing, damaged, was tampered with, or is none of bnfold's."""


class OutputError(BnfoldError):
    """A result cannot be written where it was asked for."""


class SetupError(BnfoldError):
    """This machine lacks something that the request needs."""


class MissingExtraError(SetupError):
    """A package that belongs to one of bnfold's extras is not installed."""


class ProviderError(SetupError):
    """An execution provider is unknown, not installed, or installed and unable to run."""


class WorkerError(BnfoldError):
    """A worker process failed, was killed or did not answer."""


#: Characters of another program's message that are quoted in a sentence.
_MOST = 300


def one_line(message: BaseException | str) -> str:
    """What another program's error says, as one line of bounded length; its class where it says nothing."""
    said = str(message).partition("Exception raised from ")[0]  # where in torch's own code is no user's concern
    text = " ".join(said.split()) or type(message).__name__
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"


def root_cause(error: BaseException) -> str:
    """What the error that began it all says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)
