"""``bnfold deploy``: put a model into a model repository, list what is there, go back to an earlier version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bnfold.cli.options import input_shapes, parse_sizes
from bnfold.cli.render import Output, common_options, table

if TYPE_CHECKING:
    from bnfold.deployment.repository import DeployedModel, ModelFolder
    from bnfold.deployment.run import DeployResult

#: Kept in step with the library's by a test: --help must not import it.
TARGETS = ("cpu", "cuda", "tensorrt")
PRECISIONS = ("FP32", "FP16")

_REFERENCES = {"float64": "float64", "onnxruntime": "ONNX Runtime with optimizations off"}


def _batch_sizes(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    sizes = () if text is None else parse_sizes(text)
    if sizes is None:
        raise click.BadParameter(f"{text!r} is not of the form 4,8", context, parameter)
    return sizes


@click.command(
    "deploy",
    epilog="Exit code: 0 done; 1 a proof failed and nothing was written, or --list found damage; 3 bad input.",
)
@click.argument("places", nargs=-1, required=True, metavar="MODEL REPOSITORY", type=click.Path())
@click.option("--name", help="The model's name in REPOSITORY; the file's without its suffix otherwise.")
@click.option("--max-batch", type=click.IntRange(min=1),
              help="The most samples of one run, of a model with an open batch; 8 otherwise.")  # fmt: skip
@click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True,
              help="What the server runs it on.")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="FP32", show_default=True,
              help="What TensorRT may compute in.")  # fmt: skip
@click.option("--engine-cache", default="", metavar="DIR", help="Where TensorRT keeps its engines on the server.")
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True,
              help="Sessions side by side, on each device.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0, show_default=True,
              help="Threads of each; 0 leaves it to ONNX Runtime, which takes every core.")  # fmt: skip
@click.option("--arena/--no-arena", default=True, show_default=True,
              help="Keep memory that a run no longer needs for the next one.")  # fmt: skip
@click.option("--queue-delay", type=click.IntRange(min=0), default=0, show_default=True, metavar="MICROSECONDS",
              help="How long a request may wait for others to share its run.")  # fmt: skip
@click.option("--preferred-batch", "preferred", callback=_batch_sizes, metavar="SIZES",
              help="Batch sizes that are run at once when reached, such as 4,8.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="Name of one class a line; those in the model's metadata otherwise.")  # fmt: skip
@click.option("--original", type=click.Path(path_type=Path), metavar="FILE",
              help="The model that MODEL was made from, to prove that both compute the same.")  # fmt: skip
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Prove MODEL before it is written.")  # fmt: skip
@input_shapes
@click.option("--allow-contrib", is_flag=True, help="Allow operators of ONNX Runtime alone (com.microsoft).")
@click.option("--onnxruntime", metavar="VERSION", help="The server's ONNX Runtime, to check that it reads MODEL.")
@click.option("--ort-format", metavar="MACHINE",
              help="Also write ONNX Runtime's own format, for this type of machine alone.")  # fmt: skip
@click.option("--storage-uri", metavar="URI", help="Where the repository will be, for KServe.")
@click.option("--list", "listing", is_flag=True, help="List what is in REPOSITORY; give it alone.")
@click.option("--rollback", metavar="NAME", help="Serve the version of NAME before this one; give REPOSITORY alone.")
@click.option("--to", "version", type=click.IntRange(min=1), metavar="VERSION", help="With --rollback: this version.")
@common_options
def command(
    out: Output,
    places: tuple[str, ...],
    listing: bool,
    rollback: str | None,
    version: int | None,
    **options: Any,
) -> None:
    """Put MODEL into REPOSITORY, a model repository for Triton and for `bnfold serve`, and serve it from now on.

    Before anything is written, MODEL is run, held against float64 and against --original, and its sessions are timed
    in fresh processes. The new version takes the place of the one before in one step; that stays, for --rollback.
    """
    alone = listing or rollback is not None
    if len(places) != (1 if alone else 2) or (listing and rollback is not None):
        raise click.UsageError("give MODEL and REPOSITORY; with --list or --rollback NAME, give REPOSITORY alone.")
    source_of = click.get_current_context().get_parameter_source
    if alone and any(source_of(name) is ParameterSource.COMMANDLINE for name in options):
        raise click.UsageError("--list and --rollback take none of the options of a deployment.")
    if "" in places:
        raise click.UsageError("a path is empty; give MODEL and REPOSITORY.")
    if version is not None and rollback is None:
        raise click.UsageError("--to says which version to go back to, with --rollback NAME.")
    if listing:
        _list(out, Path(places[0]))
    elif rollback is not None:
        _roll_back(out, Path(places[0]), rollback, version)
    else:
        _deploy(out, Path(places[0]), Path(places[1]), options)


def _deploy(out: Output, model: Path, repository: Path, given: dict[str, Any]) -> None:
    from bnfold.deployment.options import DeployOptions
    from bnfold.deployment.run import deploy

    options = DeployOptions(queue_delay_us=given.pop("queue_delay"), contributed=given.pop("allow_contrib"), **given)
    with out.progress() as progress:
        result = deploy(model, repository, options, progress)
    for warning in result.warnings:
        out.warn(f"{warning}.")
    _show(out, result, model)
    out.document(result.to_json())
    if result.model is None:
        out.answer_no()


def _show(out: Output, result: DeployResult, source: Path) -> None:
    proofs = result.proofs
    for what, proof in (("its original", proofs.against_original), ("itself", proofs.against_itself)):
        if proof is None:
            continue
        if proof.reference == "none":
            out.say(f"Against {what}: both files hold the same graph.")
        else:
            reference = _REFERENCES[proof.reference]
            out.say(f"Against {what} in {reference}: {proof.sentence}.", "red" if proof in proofs.failures else "")
    if result.model is None:
        out.say(f"{source} was not deployed: nothing was written.", "red")
        return
    if not proofs.verified:
        out.say("Nothing was verified, as asked for; the manifest says so, and there is no golden file.", "yellow")
    elif proofs.against_original is None:
        out.say("Give --original FILE to have it proven equal to the model that it was made from.")
    rows = [
        (path, f"{start.creation_s * 1e3:.1f} ms", f"{start.least_s * 1e3:.1f}–{start.greatest_s * 1e3:.1f}",
         f"{start.first_run_s * 1e3:.1f} ms", f"{start.peak_bytes / 2**20:.0f} MiB", start.starts)
        for path, start in result.cold_starts.items()
    ]  # fmt: skip
    columns = ["file", "session", "range", "first run", "memory", "starts"]
    out.show(table("Cold start, in fresh processes on this machine's CPU", columns, rows, right=columns[1:]))
    for path, start in result.cold_starts.items():
        if (ratio := start.ratio) is not None:
            out.say(f"Creating a session of {path} takes {ratio.estimate:.2f} times as long as one of the portable "
                    f"file (95 % interval {ratio.low:.2f}–{ratio.high:.2f}).")  # fmt: skip
    _show_model(out, result.model)


def _show_model(out: Output, model: DeployedModel) -> None:
    serving = model.serving
    batches = f"batches of up to {serving.max_batch}" if serving.max_batch else "no batching"
    out.say(f"Inputs {', '.join(map(str, model.inputs))}; outputs {', '.join(map(str, model.outputs))}.")
    out.say(f"Served on {serving.target}, {batches}, {serving.instances} × {serving.threads or 'all'} threads.")
    if model.manifest.machine_file is not None:
        made = model.manifest.machine_file
        out.say(f"{made.path} is for {made.machine.name} alone ({made.machine.cpu}, ONNX Runtime "
                f"{made.machine.onnxruntime}): not portable.", "yellow")  # fmt: skip
    out.say(f"Deployed {model.name}, version {model.version}: {model.folder} (manifest {model.digest[:12]}).", "green")


def _roll_back(out: Output, repository: Path, name: str, version: int | None) -> None:
    from bnfold.deployment.publishing import roll_back
    from bnfold.deployment.run import deployed_json

    before, model = roll_back(repository, name, version)
    was = "" if before in (None, model.version) else f" in place of version {before}"
    out.say(f"{name} serves version {model.version}{was}.", "green")
    out.document({"before": before, "deployed": deployed_json(model)})


def _list(out: Output, repository: Path) -> None:
    from bnfold.deployment.repository import all_folders, load_version, warnings_of
    from bnfold.deployment.run import deployed_json
    from bnfold.errors import RepositoryError

    found: list[tuple[ModelFolder, DeployedModel]] = []
    damage: list[str] = []
    for folder in all_folders(repository):
        for number in () if folder.foreign else folder.versions:
            try:
                found.append((folder, load_version(folder, number)))
            except RepositoryError as error:
                damage.append(str(error))
    columns = ["model", "version", "served", "deployed", "target", "batch", "proven", "manifest"]
    out.show(table("", columns, [_row(folder, model) for folder, model in found], fixed=columns))
    for sentence in (notes := (*damage, *warnings_of(repository))):
        out.warn(f"{sentence}.")
    out.document({
        "models": [{"served": folder.served == model.version, **deployed_json(model)} for folder, model in found],
        "warnings": list(notes),
    })  # fmt: skip
    if damage or any(folder.edited for folder in all_folders(repository)):
        out.answer_no()


def _row(folder: ModelFolder, model: DeployedModel) -> tuple[object, ...]:
    proven = model.manifest.verification
    against = "no" if not proven.get("verified") else "original" if proven.get("original") else "itself"
    served = "yes" if folder.served == model.version else ""
    most = model.serving.max_batch or "none"
    created = model.manifest.created.replace("T", " ").removesuffix("+00:00")
    return model.name, model.version, served, created, model.serving.target, most, against, model.digest[:12]
