"""What the profiles of a group say together: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold.benchmarking.attribution import FoldTime, OpTime, Profile, by_fold, by_op
from bnfold.fold.report import FoldReport
from bnfold.session import provider_name


@dataclass(frozen=True)
class ProfileComparison:
    """Where the time went, before and after; in seconds a run.

    Attributes:
        label: the candidate's; what is before is the first of its group.
        before: what all kernels took.
        after: what they take now.
        ops: by op type.
        folds: by fold, where both are models and the second was folded from the first; else empty.
    """

    label: str
    before: float
    after: float
    ops: tuple[OpTime, ...]
    folds: tuple[FoldTime, ...]

    @property
    def by_folds(self) -> float:
        """What all folds together gained."""
        return sum(row.gain for row in self.folds)

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {
            "label": self.label,
            "before_s": self.before,
            "after_s": self.after,
            "ops": [row.to_json() for row in self.ops],
            "folds": [row.to_json() for row in self.folds],
        }


@dataclass(frozen=True)
class GroupProfile:
    """The profiles of a group's candidates.

    Attributes:
        profiles: one for each candidate.
        comparisons: of each candidate but the first with the first.
    """

    profiles: tuple[Profile, ...]
    comparisons: tuple[ProfileComparison, ...]

    def to_json(self) -> dict[str, Any]:
        """The profiles as plain data."""
        return {
            "candidates": [
                {
                    "label": profile.label,
                    "seconds": profile.seconds,
                    "providers": dict(profile.providers()),
                    "kernels": [kernel.to_json() for kernel in profile.kernels],
                }
                for profile in self.profiles
            ],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }


def compare_profiles(profiles: Sequence[Profile], report: FoldReport | None) -> GroupProfile:
    """Hold every profile against the first.

    Args:
        profiles: of a group.
        report: what folds in the first one's model; None where the candidates differ in settings only.
    """
    first, *others = profiles
    return GroupProfile(
        profiles=tuple(profiles),
        comparisons=tuple(
            ProfileComparison(
                label=other.label,
                before=first.seconds,
                after=other.seconds,
                ops=by_op(first.kernels, other.kernels),
                folds=by_fold(first, other, report) if report else (),
            )
            for other in others
        ),
    )


def misplaced(profile: Profile, provider: str) -> str | None:
    """A sentence if kernels run on another provider than was asked for: ONNX Runtime gives what a provider does not
    support to the CPU, and copies between the two."""
    wanted = provider_name(provider)
    strangers = [kernel for kernel in profile.kernels if kernel.provider != wanted]
    if not strangers:
        return None
    ops = ", ".join(sorted({kernel.op for kernel in strangers}))
    elsewhere = ", ".join(sorted({kernel.provider for kernel in strangers}))
    return (
        f"{len(strangers)} of {len(profile.kernels)} nodes of {profile.label} run on {elsewhere} and not on {wanted} "
        f"({ops}); what passes between the two is copied, so look for a version of those ops that it supports"
    )


def timing_caveat(provider: str) -> Iterator[str]:
    """What to know of the profile's times on a provider that is not the CPU."""
    if provider_name(provider) != provider_name("cpu"):
        yield (
            f"on {provider_name(provider)} ONNX Runtime's profile times how long it takes to queue a kernel, "
            "not to run it; read its counts and placements, not its times"
        )
