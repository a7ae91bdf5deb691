"""How requests arrive: one after the other, all at once, or at random times."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bnfold.errors import OptionError
from bnfold.session import MOST_THREADS


class Kind(StrEnum):
    """The scenarios, named as MLPerf names them; its "server" is the Poisson one."""

    SINGLE_STREAM = "single-stream"
    OFFLINE = "offline"
    POISSON = "poisson"


#: Below it, the few arrivals of one block take hours.
LOWEST_RATE = 1e-3

#: Above it, arrivals follow each other faster than a process can look at the clock.
HIGHEST_RATE = 1e6


@dataclass(frozen=True)
class Scenario:
    """How requests arrive.

    * Single stream: the next request comes when the one before is answered; what is measured is its latency.
    * Offline: a queue of requests is there from the start, and ``streams`` threads take from it; what is measured
      is the time until it is empty, divided by its length.
    * Poisson: requests arrive at random times, ``rate`` a second on average, whether or not the one before is
      answered, and wait for their turn. The latency counts from the *scheduled* arrival, so that a slow answer
      shows in all the requests that had to wait for it.

    Attributes:
        kind: which of them.
        streams: threads that run the session at the same time; 1 unless offline.
        rate: mean arrivals a second; None unless Poisson.

    Raises:
        OptionError: a value is out of its range, or belongs to another kind.
    """

    kind: Kind = Kind.SINGLE_STREAM
    streams: int = 1
    rate: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= MOST_THREADS:
            raise OptionError(f"a number of streams is from 1 to {MOST_THREADS}")
        if self.streams > 1 and self.kind is not Kind.OFFLINE:
            raise OptionError("several streams are for the offline scenario only")
        if (self.rate is not None) != (self.kind is Kind.POISSON):
            raise OptionError("the Poisson scenario needs a rate of arrivals a second, and no other takes one")
        if self.rate is not None and not LOWEST_RATE <= self.rate <= HIGHEST_RATE:
            raise OptionError(f"a rate is from {LOWEST_RATE:g} to {HIGHEST_RATE:,.0f} arrivals a second")

    def label(self) -> str:
        """The scenario in a few words, for example ``offline, 2 streams``."""
        match self.kind:
            case Kind.SINGLE_STREAM:
                return "single stream"
            case Kind.OFFLINE:
                return f"offline, {self.streams} stream{'s' * (self.streams > 1)}"
            case Kind.POISSON:
                return f"Poisson, {self.rate:g} a second"

    def to_json(self) -> dict[str, object]:
        """The scenario as plain data."""
        return {"kind": self.kind.value, "streams": self.streams, "rate": self.rate}


#: What is measured unless something else is asked for.
SINGLE_STREAM = Scenario()
