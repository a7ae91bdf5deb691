"""Files and folders that appear whole or not at all, and what is said where they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnfold.errors import OutputError
from bnfold.files import output_folder


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fails_in(folder: Path, *files: str) -> None:
    with output_folder(folder) as made:
        assert made.is_dir()
        for file in files:
            (made / file).touch()
        raise KeyboardInterrupt


def test_folders_that_a_failure_left_empty_are_gone_again(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fails_in(tmp_path / "before" / "a" / "b")
    assert entries(tmp_path) == ["before"]


def test_a_folder_that_was_there_or_holds_something_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fails_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fails_in(tmp_path / "a" / "b", "../file")
    assert entries(tmp_path) == ["a", "a/file"]


def test_a_folder_stays_where_nothing_fails(tmp_path: Path) -> None:
    with output_folder(tmp_path / "a" / "b"):
        pass
    assert entries(tmp_path) == ["a", "a/b"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "file is no folder"),
        ("file/below/it", "file is no folder"),
        ("dangling", "dangling is a link to nothing"),
        ("dangling/below", "dangling is a link to nothing"),
        ("loop/below", "Too many levels of symbolic links"),
        ("n" * 300, "File name too long"),
    ],
)
def test_what_is_in_the_way_of_a_folder_is_named(path: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = entries(tmp_path)
    with pytest.raises(OutputError, match=f"cannot be created: .*{words}"), output_folder(tmp_path / path):
        pytest.fail("there is no such folder")
    assert entries(tmp_path) == before


def test_a_folder_without_a_name_is_not_the_current_one() -> None:
    with pytest.raises(OutputError, match="name of the folder to write is empty"), output_folder(""):
        pytest.fail("there is no such folder")
