"""The repository: what is served, what an interrupted or a concurrent writer leaves, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deployments import INPUTS, OUTPUTS, deploy_bytes, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.deployment.manifest import (
    DynamicBatching,
    FileRecord,
    Machine,
    MachineFile,
    Manifest,
    Serving,
    TensorSpec,
)
from bnfold.deployment.publishing import check_place, publish_version, roll_back
from bnfold.deployment.repository import model_folder, read_repository, warnings_of
from bnfold.errors import OptionError, OutputError, RepositoryError


def served(repository: Path) -> bytes:
    (model,) = read_repository(repository)
    return model.model.read_bytes()


def test_the_last_version_deployed_is_served(tmp_path: Path) -> None:
    deploy_bytes(tmp_path, content=b"first")
    deploy_bytes(tmp_path, content=b"second")
    (model,) = read_repository(tmp_path)
    assert (model.name, model.version, model.model.read_bytes()) == ("net", 2, b"second")
    assert model.labels == ("cat", "dog")
    assert model.inputs == INPUTS
    assert warnings_of(tmp_path) == ()


def test_models_are_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        deploy_bytes(tmp_path, name)
    assert [model.name for model in read_repository(tmp_path)] == ["a", "b", "c"]


def test_a_rollback_goes_back_one_version_at_a_time_and_forward_to_any(tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3"):
        deploy_bytes(tmp_path, content=content)
    assert roll_back(tmp_path, "net")[0] == 3
    assert served(tmp_path) == b"2"
    roll_back(tmp_path, "net")
    assert served(tmp_path) == b"1"
    with pytest.raises(RepositoryError, match="none before it"):
        roll_back(tmp_path, "net")
    roll_back(tmp_path, "net", 3)
    assert served(tmp_path) == b"3"


def test_a_number_is_never_used_twice(tmp_path: Path) -> None:
    for content in (b"1", b"2"):
        deploy_bytes(tmp_path, content=content)
    roll_back(tmp_path, "net")
    assert deploy_bytes(tmp_path, content=b"3").version == 3
    assert roll_back(tmp_path, "net")[1].version == 2


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.one_of(st.just("deploy"), st.just("back"), st.integers(1, 6)), max_size=8))
def test_after_any_deployments_and_rollbacks_one_whole_version_is_served(
    steps: list[str | int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository = tmp_path_factory.mktemp("repository")
    deployed = serving = 0
    for step in steps:
        wanted = step if isinstance(step, int) else serving - 1
        if step == "deploy":
            deployed += 1
            deploy_bytes(repository, content=str(deployed).encode())
            serving = deployed
        elif 1 <= wanted <= deployed:
            roll_back(repository, "net", None if step == "back" else wanted)
            serving = wanted
        else:
            with pytest.raises(RepositoryError):
                roll_back(repository, "net", None if step == "back" else wanted)
        assert [model.version for model in read_repository(repository)] == ([serving] if serving else [])
        assert not serving or served(repository) == str(serving).encode()
        assert warnings_of(repository) == ()


def test_a_version_folder_of_another_tool_is_counted_and_not_served(tmp_path: Path) -> None:
    deploy_bytes(tmp_path)
    (tmp_path / "net" / "7").mkdir()
    assert deploy_bytes(tmp_path).version == 8


def test_a_manifest_reads_back_as_it_was_written() -> None:
    record = FileRecord(3, "0" * 64)
    manifest = Manifest(
        name="net",
        version=7,
        created="2026-01-01T00:00:00+00:00",
        model="model.onnx",
        inputs=(TensorSpec("x", "FP16", (None, 3, None)), TensorSpec("n", "INT64", ())),
        outputs=OUTPUTS,
        serving=Serving(8, "tensorrt", "FP16", 2, 3, False, DynamicBatching(500, (4, 8))),
        files=dict.fromkeys(("model.onnx", "labels.txt", "p.json", "golden.npz", "not-portable/here.ort"), record),
        labels="labels.txt",
        preprocessing="p.json",
        golden="golden.npz",
        machine_file=MachineFile("not-portable/here.ort", Machine("here", "cpu", "avx2", "Linux", "1.2", "CPU")),
        verification={"verified": True},
        cold_start={"model.onnx": {"starts": 7}},
        source={"file": "net.onnx"},
        tools={"onnx": "1.0"},
    )
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def lead_outside(file: Path) -> None:
    outside = file.parents[3] / "outside"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)


def lead_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def lead_configuration_outside(file: Path) -> None:
    lead_outside(file.with_name("config.pbtxt"))


def lead_served_configuration_outside(file: Path) -> None:
    config = file.parents[1] / "config.pbtxt"
    outside = file.parents[3] / "outside"
    outside.write_bytes(config.read_bytes())
    config.unlink()
    config.symlink_to(outside)


def edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        manifest = file.parent / "manifest.json"
        document = json.loads(manifest.read_text())
        change(document)
        manifest.write_text(json.dumps(document))

    return edit


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.onnx", cut, "net/1/model.onnx is not the file that was deployed"),
        ("model.onnx", flip_a_bit, "net/1/model.onnx is not the file that was deployed"),
        ("model.onnx", Path.unlink, "net/1/model.onnx is missing"),
        ("model.onnx", lead_outside, "model.onnx is a link that leads out of"),
        ("labels.txt", flip_a_bit, "labels.txt is not the file that was deployed"),
        ("model.onnx", lead_to_itself, "model.onnx is a link to itself|model.onnx is missing"),
        ("model.onnx", lead_configuration_outside, "net/1/config.pbtxt is a link that leads out of"),
        ("model.onnx", lead_served_configuration_outside, "net/config.pbtxt is a link that leads out of"),
        ("manifest.json", cut, "it is no JSON"),
        ("manifest.json", lead_outside, "manifest.json is a link that leads out of"),
        ("manifest.json", lambda file: file.write_text("[" * 100_000), "it is no JSON"),
        ("manifest.json", lambda file: file.write_text("[]"), "lacks some of what it should hold"),
        ("manifest.json", edit_manifest(lambda d: d.update(format="other")), "no manifest of bnfold"),
        ("manifest.json", edit_manifest(lambda d: d.update(format_version=99)), "upgrade bnfold"),
        ("manifest.json", edit_manifest(lambda d: d.update(name="other")), "deployed elsewhere"),
        ("manifest.json", edit_manifest(lambda d: d.update(version=True)), "lacks some"),
        ("manifest.json", edit_manifest(lambda d: d.update(model="../../secret")), "no size or hash"),
        ("manifest.json", edit_manifest(lambda d: d.pop("serving")), "lacks some"),
        ("manifest.json", edit_manifest(lambda d: d.update(format_version="\x1b[31m")), "lacks some"),
        ("manifest.json", edit_manifest(lambda d: d.update(format_version=True)), "lacks some"),
        ("manifest.json", edit_manifest(lambda d: d.update(verification=[])), "lacks some"),
        ("manifest.json", edit_manifest(lambda d: d["serving"].update(instances=10**30)), "lacks some"),  # type: ignore[attr-defined]
        ("manifest.json", edit_manifest(lambda d: d["serving"].update(arena="no")), "lacks some"),  # type: ignore[attr-defined]
        ("manifest.json", edit_manifest(lambda d: d["inputs"][0].update(name="\x1b[31m")), "lacks some"),  # type: ignore[index]
        ("manifest.json", edit_manifest(lambda d: d["files"].update({"a\0b": {}})), "lacks some"),  # type: ignore[attr-defined]
        ("manifest.json", edit_manifest(lambda d: d["files"].update({"\ud800": {}})), "lacks some"),  # type: ignore[attr-defined]
        (
            "manifest.json",
            edit_manifest(lambda d: d["files"].update({"../../x": {"size": 1, "sha256": "0" * 64}})),  # type: ignore[attr-defined]
            "no path of a file in its folder",
        ),
        (
            "manifest.json",
            edit_manifest(lambda d: d["files"]["model.onnx"].update(sha256="00")),  # type: ignore[index]
            "no SHA-256",
        ),
        ("manifest.json", edit_manifest(lambda d: d["inputs"][0].update(datatype="COMPLEX")), "data type 'COMPLEX'"),  # type: ignore[index]
    ],
)
def test_what_is_not_as_deployed_is_refused(
    tmp_path: Path, file: str, damage: Callable[[Path], None], message: str
) -> None:
    repository = tmp_path / "repository"
    deploy_bytes(repository)
    damage(repository / "net" / "1" / file)
    with pytest.raises(RepositoryError, match=message):
        read_repository(repository)


def test_a_damaged_version_is_replaced_by_a_new_one_and_cannot_be_gone_back_to(tmp_path: Path) -> None:
    deploy_bytes(tmp_path, content=b"1")
    flip_a_bit(tmp_path / "net" / "1" / "model.onnx")
    deploy_bytes(tmp_path, content=b"2")
    assert served(tmp_path) == b"2"
    with pytest.raises(RepositoryError, match="is not the file that was deployed"):
        roll_back(tmp_path, "net")
    assert served(tmp_path) == b"2"


def test_a_configuration_changed_by_hand_is_refused_until_a_rollback_restores_it(tmp_path: Path) -> None:
    deploy_bytes(tmp_path)
    config = tmp_path / "net" / "config.pbtxt"
    config.write_text(config.read_text() + "max_batch_size: 64\n")
    for attempt in (lambda: read_repository(tmp_path), lambda: deploy_bytes(tmp_path)):
        with pytest.raises(RepositoryError, match="is not what bnfold wrote for any version"):
            attempt()
    roll_back(tmp_path, "net", 1)
    assert read_repository(tmp_path)


def test_a_version_that_appears_while_a_repository_is_read_is_no_change_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration is read before the versions are listed: the one that it names is among them."""
    deploy_bytes(tmp_path, content=b"old")
    listed = Path.iterdir
    newer = iter([b"new"])

    def listed_just_before_a_deployment(folder: Path) -> Iterator[Path]:
        entries = list(listed(folder))
        if folder == tmp_path / "net":
            for content in newer:
                deploy_bytes(tmp_path, content=content)
        return iter(entries)

    monkeypatch.setattr(Path, "iterdir", listed_just_before_a_deployment)
    assert served(tmp_path) == b"old"
    assert served(tmp_path) == b"new"


def test_a_served_version_without_its_manifest_is_damage_that_a_deployment_or_a_rollback_mends(tmp_path: Path) -> None:
    for content in (b"1", b"2"):
        deploy_bytes(tmp_path, content=content)
    (tmp_path / "net" / "2" / "manifest.json").unlink()
    with pytest.raises(RepositoryError, match=r"2/manifest\.json cannot be read"):
        read_repository(tmp_path)
    roll_back(tmp_path, "net")
    assert served(tmp_path) == b"1"
    deploy_bytes(tmp_path, content=b"3")
    assert served(tmp_path) == b"3"


def test_a_model_folder_that_is_a_link_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    deploy_bytes(tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "net").symlink_to(tmp_path / "one" / "net")
    with pytest.raises(RepositoryError, match="leads out of"):
        read_repository(tmp_path / "two")
    with pytest.raises(RepositoryError, match="is a file or a link"):
        check_place(tmp_path / "two", "net", INPUTS, OUTPUTS)


def test_a_repository_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    deploy_bytes(tmp_path / "one")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert served(tmp_path / "two") == b"model"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../net", "a/b", ".hidden", "-x", "a b", "nét", "a" * 129, "a\n", "a\\b"]
)
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="cannot name a model"):
        deploy_bytes(tmp_path / "repository", name)
    assert list(tmp_path.iterdir()) == []


def test_a_version_with_other_inputs_is_refused(tmp_path: Path) -> None:
    deploy_bytes(tmp_path)
    other = (TensorSpec("x", "FP32", (None, 4)),)
    with pytest.raises(RepositoryError, match=r"net has the inputs x FP32\[\?, 3\] in version 1, .* x FP32\[\?, 4\]"):
        publish_version(tmp_path, "net", fill("net", inputs=other))
    assert sorted(entry.name for entry in (tmp_path / "net").iterdir()) == ["1", "config.pbtxt"]


def test_a_model_of_another_tool_is_left_alone(tmp_path: Path) -> None:
    deploy_bytes(tmp_path)
    (tmp_path / "theirs" / "1").mkdir(parents=True)
    (tmp_path / "theirs" / "config.pbtxt").write_text('backend: "python"\n')
    assert [model.name for model in read_repository(tmp_path)] == ["net"]
    assert [note for note in warnings_of(tmp_path) if "theirs was not deployed by bnfold" in note]
    with pytest.raises(RepositoryError, match="not deployed by bnfold"):
        deploy_bytes(tmp_path, "theirs")
    assert sorted(entry.name for entry in (tmp_path / "theirs").iterdir()) == ["1", "config.pbtxt"]


def a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def nothing(tmp_path: Path) -> Path:
    return tmp_path / "nothing"


@pytest.mark.parametrize(("place", "message"), [(a_file, "is a file"), (nothing, "does not exist")])
def test_reading_what_is_no_folder_is_refused(tmp_path: Path, place: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        read_repository(place(tmp_path))


def test_deploying_into_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a file"):
        check_place(a_file(tmp_path), "net", INPUTS, OUTPUTS)
    with pytest.raises(OutputError, match="cannot be created"):
        deploy_bytes(a_file(tmp_path))


def test_a_repository_that_cannot_be_written_is_told_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match="cannot be written; choose another repository"):
        check_place(tmp_path, "net", INPUTS, OUTPUTS)


def test_an_error_while_writing_leaves_nothing_of_a_first_deployment(tmp_path: Path) -> None:
    def full(folder: Path, _version: int) -> Manifest:
        (folder / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(folder / "model.onnx"))

    with pytest.raises(OutputError, match="No space left on device"):
        publish_version(tmp_path, "net", full)
    assert not (tmp_path / "net").exists()
    assert read_repository(tmp_path) == ()


def test_a_full_disk_is_told_of_the_repository_not_of_the_source_or_a_hidden_folder(tmp_path: Path) -> None:
    def copies(folder: Path, _version: int) -> Manifest:
        raise OSError(28, "No space left on device", "/tmp/source", None, str(folder / "model.onnx"))

    with pytest.raises(OutputError, match=f"^{re.escape(str(tmp_path))} cannot be written: No space left"):
        publish_version(tmp_path, "net", copies)


#: Runs a deployment that kills itself with SIGKILL at the call of so many functions of os and shutil.
KILLED = """
import os, pathlib, shutil, signal, sys
from deployments import deploy_bytes
countdown = int(sys.argv[2])
def dying(function):
    def call(*arguments, **options):
        global countdown
        countdown -= 1
        if countdown < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for owner, name in [(pathlib.Path, "rename"), (pathlib.Path, "replace"), (pathlib.Path, "mkdir"), (shutil, "copyfile"),
                    (pathlib.Path, "write_bytes"), (pathlib.Path, "write_text"), (os, "fsync")]:
    setattr(owner, name, dying(getattr(owner, name)))
deploy_bytes(pathlib.Path(sys.argv[1]), content=b"new")
"""


def run_killed(repository: Path, moment: int) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(repository), str(moment)]
    return subprocess.run(command, env=environment, cwd=repository.parent, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["first deployment", "update"])
def test_a_kill_at_any_moment_leaves_the_old_version_or_the_new_one(tmp_path: Path, first: bool) -> None:
    outcomes = []
    for moment in range(100):
        repository = tmp_path / str(moment)
        if first:
            repository.mkdir()
        else:
            deploy_bytes(repository, content=b"old")
        code = run_killed(repository, moment)
        contents = [model.model.read_bytes() for model in read_repository(repository)]
        assert contents in ([[], [b"new"]] if first else [[b"old"], [b"new"]])
        outcomes.append(contents == [b"new"])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deploy_bytes(repository, content=b"newest")  # what is left is in nobody's way
        assert served(repository) == b"newest"
        assert model_folder(repository / "net").leftovers == ()
        assert warnings_of(repository) == ()
    else:
        pytest.fail("the deployment never came to its end")
    assert moment > 10
    assert outcomes == sorted(outcomes), "once served, always served"


def test_what_a_kill_left_is_told_and_not_read(tmp_path: Path) -> None:
    deploy_bytes(tmp_path, content=b"old")
    run_killed(tmp_path, 3)
    assert served(tmp_path) == b"old"
    assert any("runs now or was interrupted" in note for note in warnings_of(tmp_path))


def test_those_who_deploy_at_once_get_a_version_each(tmp_path: Path) -> None:
    contents = [str(number).encode() for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        models = list(pool.map(lambda content: deploy_bytes(tmp_path, content=content), contents))
    assert sorted(model.version for model in models) == list(range(1, 13))
    by_version = {model.version: model.model.read_bytes() for model in models}
    assert sorted(by_version.values()) == sorted(contents)
    assert served(tmp_path) == by_version[12]


def test_a_writer_waits_for_another_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(folder: Path, version: int) -> Manifest:
        monkeypatch.setattr("bnfold.deployment.publishing._PATIENCE", 0.1)
        deploy_bytes(tmp_path, "other")
        return fill("net")(folder, version)

    with pytest.raises(OutputError, match="another deployment is writing"):
        publish_version(tmp_path, "net", nested)
