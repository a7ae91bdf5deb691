"""Import a package of an extra, or say which extra brings it."""

from __future__ import annotations

import importlib
from types import ModuleType

from bnfold.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Return the imported ``module``.

    Args:
        module: the import name, for example ``"onnxruntime"``.
        extra: the extra of bnfold that installs it, for example ``"cpu"``.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the package is there and one of its own imports is broken: not ours to explain
        raise MissingExtraError(f"{module} is not installed; install it with: pip install 'bnfold[{extra}]'") from error
