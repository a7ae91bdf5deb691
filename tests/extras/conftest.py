"""The tests of an extra are collected only where that extra is installed: they import it at the top."""

from __future__ import annotations

from importlib.util import find_spec

#: The import that each extra brings.
MODULES = {"ray": "ray", "serve": "kserve", "triton": "tritonclient"}

collect_ignore = [f"test_{extra}.py" for extra, module in MODULES.items() if find_spec(module) is None]
