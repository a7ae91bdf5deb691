"""What Prometheus reads of a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")


class Metrics:
    """The counters and histograms of one server, in a registry of their own.

    Attributes:
        registry: what ``/metrics`` shows.
        requests: inference requests that were answered, by protocol and outcome: ``ok``, or what failed.
        seconds: from a request's arrival to its answer.
        queue_seconds: how much of that it waited for a session and for others to join.
        run_seconds: how long a batch ran.
        batch_rows: rows of a batch.
        batch_requests: requests that were joined in a batch.
        in_flight: requests that are not answered yet.
        ready: 1 while the server takes requests.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        ProcessCollector(registry=own)
        self.requests = Counter(
            "bnfold_requests", "Inference requests answered.", (*_MODEL, "protocol", "outcome"), registry=own
        )
        self.seconds = Histogram(
            "bnfold_request_seconds", "From arrival to answer.", (*_MODEL, "protocol"), buckets=_SECONDS, registry=own
        )
        self.queue_seconds = Histogram(
            "bnfold_queue_seconds", "Waiting for a session, and for others to join.", _MODEL, buckets=_SECONDS,
            registry=own,
        )  # fmt: skip
        self.run_seconds = Histogram("bnfold_run_seconds", "One batch in ONNX Runtime.", _MODEL, buckets=_SECONDS,
                                     registry=own)  # fmt: skip
        self.batch_rows = Histogram("bnfold_batch_rows", "Rows of a batch.", _MODEL, buckets=_ROWS, registry=own)
        self.batch_requests = Histogram("bnfold_batch_requests", "Requests joined in a batch.", _MODEL, buckets=_ROWS,
                                        registry=own)  # fmt: skip
        self.in_flight = Gauge("bnfold_requests_in_flight", "Requests not answered yet.", registry=own)
        self.ready = Gauge("bnfold_ready", "1 while the server takes requests.", registry=own)
