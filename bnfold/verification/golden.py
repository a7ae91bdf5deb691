"""Golden files: what the reference computes, kept for machines that do not have it.

One ``.npz`` of plain arrays (no pickled objects). ``about`` is a JSON text in UTF-8::

    {"format": "bnfold golden", "version": 1, "model": {"name", "graph_sha256"}, "made_with": {package: version},
     "reference": "float64" | "onnxruntime", "why", "notes", "unoptimized", "roundoff", "seed", "rule",
     "interface": {"inputs": [{"name", "dtype", "shape"}], "outputs": [...]},
     "feeds": [{"name", "kind", "inputs": {name: dtype}, "outputs": [{"dtype", "metrics", "problems", "bounds"}]}]}

and the arrays are, with f, i, o the positions of a set of inputs, an input and an output, and a the axis of slices::

    feed/f/input/i      the input, bit for bit; types that numpy does not know as unsigned integers of the same width
    feed/f/output/o     what the reference computes, in float64 unless it is not a number of floating point
    feed/f/excused/o    elements where the reference itself overflows in its own type
    feed/f/slices/o/RUN/a   the reference's own errors, slice by slice

The bounds in ``about`` are those of the rule, for readers other than bnfold, which works them out anew.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from zipfile import BadZipFile

import ml_dtypes  # noqa: F401  # np.dtype("bfloat16") is known once it is imported
import numpy as np
from numpy.typing import NDArray

from bnfold.errors import DataError
from bnfold.files import StrPath, write_bytes
from bnfold.verification.expectation import Expectation
from bnfold.verification.inputs import Feed, FeedKind
from bnfold.verification.interface import Interface, Port
from bnfold.verification.measurement import Measurement, Record
from bnfold.verification.metrics import Metrics
from bnfold.verification.options import VerifyOptions
from bnfold.verification.subject import Subject
from bnfold.verification.verdict import JUDGED, ReferenceKind, Rule, Run, bound_of, own_errors
from bnfold.verification.versions import versions

Array = NDArray[Any]

_FORMAT = "bnfold golden"
_VERSION = 1


@dataclass(frozen=True)
class Golden:
    """A golden file.

    Attributes:
        path: the file.
        model: the name of the model that it was made from.
        made_with: the version of each package.
        expectation: what it holds.
    """

    path: Path
    model: str
    made_with: Mapping[str, str]
    expectation: Expectation

    @property
    def summary(self) -> str:
        """What it is, for a sentence."""
        return f"{self.path}, made from {self.model} by bnfold {self.made_with.get('bnfold', '?')}"


def save_golden(expectation: Expectation, reference: Subject, options: VerifyOptions, path: StrPath) -> Golden:
    """Write a golden file.

    Raises:
        OutputError: the file cannot be written.
    """
    model = reference.name if reference.path is None else reference.path.name
    made_with = versions()
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": {"name": model, "graph_sha256": expectation.fingerprint},
        "made_with": made_with,
        "reference": expectation.kind,
        "why": expectation.why,
        "notes": list(expectation.notes),
        "unoptimized": expectation.unoptimized,
        "roundoff": expectation.measurement.roundoff,
        "seed": options.seed,
        "rule": options.effective_rule.text(expectation.kind),
        "interface": {
            "inputs": [port.to_json() for port in expectation.interface.inputs],
            "outputs": [port.to_json() for port in expectation.interface.outputs],
        },
        "feeds": _feeds_json(expectation.measurement, options.effective_rule),
    }
    text = json.dumps(about, allow_nan=False).encode()
    arrays: dict[str, Any] = {"about": np.frombuffer(text, dtype=np.uint8), **dict(_arrays(expectation.measurement))}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getvalue())
    return Golden(Path(path), model, made_with, expectation)


def _feeds_json(measurement: Measurement, rule: Rule) -> list[dict[str, Any]]:
    bounds = {name: _bounds(measurement, name, rule) for name in measurement.types}
    return [
        {
            "name": feed.name,
            "kind": feed.kind,
            "inputs": {name: str(value.dtype) for name, value in feed.values.items()},
            "outputs": [
                {
                    "dtype": dtype,
                    "metrics": {run: metrics.to_json() for run, metrics in records[name].metrics.items()},
                    "problems": dict(records[name].problems),
                    "bounds": bounds[name][index],
                }
                for name, dtype in measurement.types.items()
            ],
        }
        for index, (feed, records) in enumerate(zip(measurement.feeds, measurement.records, strict=True))
    ]


def _bounds(measurement: Measurement, name: str, rule: Rule) -> list[dict[Run, float]]:
    observations = measurement.observations_of(name)
    found: list[dict[Run, float]] = [{} for _ in observations]
    for run in JUDGED:
        for bound, observation, own in zip(found, observations, own_errors(observations, rule, run), strict=True):
            bound[run] = bound_of(observation, own, run, rule)
    return found


def _arrays(measurement: Measurement) -> Iterator[tuple[str, Array]]:
    for f, feed in enumerate(measurement.feeds):
        for i, value in enumerate(feed.values.values()):
            yield f"feed/{f}/input/{i}", _plain(value)
        for o, name in enumerate(measurement.types):
            yield f"feed/{f}/output/{o}", _plain(measurement.expected[f][name])
            record = measurement.records[f][name]
            if record.excused is not None:
                yield f"feed/{f}/excused/{o}", record.excused
            for run, slices in record.slices.items():
                for axis, values in slices.items():
                    yield f"feed/{f}/slices/{o}/{run}/{axis}", values


def _plain(value: Array) -> Array:
    """The same bits in a type that numpy writes without pickling."""
    if value.dtype == object:
        return value.astype(np.str_)
    if value.dtype.kind in "V" or value.dtype.name.startswith("float8"):
        return value.view(f"u{value.dtype.itemsize}")
    return value


def load_golden(path: StrPath) -> Golden:
    """Read a golden file.

    Raises:
        DataError: the file is missing, damaged, or none.
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"{source} does not exist" if not source.exists() else f"{source} is a folder, no golden file")
    try:
        with source.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            arrays = {} if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile, KeyError, NotImplementedError, MemoryError, zlib.error) as error:
        raise DataError(f"{source} is no golden file, or is damaged; make it anew with --save-golden") from error
    try:
        about = json.loads(arrays["about"].tobytes().decode())
        if about["format"] != _FORMAT:
            raise ValueError(about["format"])
        version = int(about["version"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source} is no golden file; make one with --save-golden") from error
    if version != _VERSION:
        raise DataError(f"{source} is a golden file of version {version}, and this bnfold reads {_VERSION}; upgrade it")
    try:
        return Golden(source, str(about["model"]["name"]), dict(about["made_with"]), _expectation(about, arrays))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{source} is damaged: it lacks some of what it should hold; make it anew") from error


def _expectation(about: Mapping[str, Any], arrays: Mapping[str, Array]) -> Expectation:
    interface = Interface(
        tuple(map(Port.from_json, about["interface"]["inputs"])),
        tuple(map(Port.from_json, about["interface"]["outputs"])),
    )
    names = [port.name for port in interface.outputs]
    documents: Sequence[Mapping[str, Any]] = about["feeds"]
    if about["reference"] not in get_args(ReferenceKind) or not documents:
        raise ValueError(about["reference"])
    if not all(document["kind"] in get_args(FeedKind) for document in documents):
        raise ValueError("kind")
    feeds = [
        Feed(
            document["name"],
            document["kind"],
            {
                name: arrays[f"feed/{f}/input/{i}"].view(dtype)
                for i, (name, dtype) in enumerate(document["inputs"].items())
            },
        )
        for f, document in enumerate(documents)
    ]
    types = {name: output["dtype"] for name, output in zip(names, documents[0]["outputs"], strict=True)}
    expected = [{name: arrays[f"feed/{f}/output/{o}"] for o, name in enumerate(names)} for f in range(len(documents))]
    measurement = Measurement(feeds, types, expected, float(about["roundoff"]))
    measurement.records = [
        {
            name: _record(output, arrays, f"feed/{f}", o)
            for o, (name, output) in enumerate(zip(names, document["outputs"], strict=True))
        }
        for f, document in enumerate(documents)
    ]
    return Expectation(
        measurement=measurement,
        kind=about["reference"],
        why=about["why"],
        notes=tuple(about["notes"]),
        unoptimized=about["unoptimized"],
        interface=interface,
        fingerprint=about["model"]["graph_sha256"],
    )


def _record(output: Mapping[str, Any], arrays: Mapping[str, Array], feed: str, o: int) -> Record:
    slices: dict[Run, dict[int, Array]] = {}
    prefix = f"{feed}/slices/{o}/"
    for name, values in arrays.items():
        if name.startswith(prefix):
            run, axis = name.removeprefix(prefix).split("/")
            slices.setdefault(run, {})[int(axis)] = values  # type: ignore[arg-type]  # a name from a file
    return Record(
        metrics={run: Metrics.from_json(document) for run, document in output["metrics"].items()},
        slices=dict(slices),
        problems=dict(output["problems"]),
        excused=arrays.get(f"{feed}/excused/{o}"),
    )
