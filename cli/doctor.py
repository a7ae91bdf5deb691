"""``bnfold doctor``: what this machine can run."""

from __future__ import annotations

import click

from bnfold.cli.render import Output, common_options, table


@click.command("doctor")
@common_options
def command(output: Output) -> None:
    """Tell which versions are installed, which providers truly run, and how to mend what is missing."""
    from rich.text import Text

    from bnfold.environment import doctor

    found = doctor()
    output.say(f"Python {found.python} on {found.system}, {found.cores} core{'s' * (found.cores != 1)}.")
    extras: dict[str, list[str]] = {}
    for package in found.packages:
        extras.setdefault(package.name, []).append(package.extra or "always")
    versions = {package.name: package.version for package in found.packages}
    missing = Text("not installed", style="yellow")
    rows = [(name, versions[name] or missing, ", ".join(needed)) for name, needed in extras.items()]
    output.show(table("", ["package", "version", "needed for"], rows))
    providers = [
        (p.name, Text("runs", style="green") if p.runs else Text("does not run", style="red"), p.detail)
        for p in found.providers
    ]
    output.show(table("", ["provider", "state", "detail"], providers, fixed=["state"]))
    for sentence in found.advice:
        output.say(f"• {sentence}")
    output.document(found.to_json())
