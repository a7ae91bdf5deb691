"""The docs say what the program does: generated pages are fresh, links lead somewhere, commands exist."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path

import pytest

from bnfold.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_command_reference_is_what_help_says() -> None:
    spec = util.spec_from_file_location("cli_reference", ROOT / "docs" / "cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == module.reference(), "run: python docs/cli_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist(page: Path) -> None:
    shown = set(re.findall(r"^(?:\$ |\.venv/bin/)?bnfold (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert shown <= set(COMMANDS), page.name


def test_readme_has_the_two_commands_that_do_all_the_set_up() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo", "test"):
        block = re.search(rf"<!-- {name} command -->\n```sh\n(.+?)\n```", text, re.DOTALL)
        assert block is not None, name
        assert "constraints.txt" in block[1]
        assert "python3 -m venv" in block[1]


def test_figures_of_the_algebra_are_what_the_reference_transform_computes() -> None:
    spec = util.spec_from_file_location("batch_norm_figures", ROOT / "docs" / "batch_norm_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.PAGE.read_text(encoding="utf-8")
    assert text == module.page(text), "run: python docs/batch_norm_figures.py"
