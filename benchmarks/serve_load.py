"""The load that `bnfold serve` holds, and the latency under it, with requests joined in batches and without.

    python benchmarks/serve_load.py REPOSITORY NAME [--protocol grpc] [--limit 50]

Needs `pip install -c constraints.txt '.[test-serve]'`. One server serves the model twice, with dynamic batching and
without, and the two are measured in turns. The load is open: requests arrive at random (Poisson) whether or not earlier
ones were answered, and a latency counts from the moment that a request was due, so that a server that falls behind
cannot slow its own load down. A rate is held if every request of a round is answered and 99 % of them in time.

The server's processor time for each request depends less on what else the machine does than its latencies do.
The client takes processor time too: where it shares cores with the server, a machine of its own would hold more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.deployment.manifest import DynamicBatching, Manifest, Serving
from bnfold.deployment.publishing import publish_version
from bnfold.deployment.repository import DeployedModel, read_repository
from bnfold.session import SessionOptions, create_session, run_session

Ask = Callable[[], Awaitable[None]]
VARIANTS = ("batched", "alone")


@dataclass(frozen=True)
class Round:
    """One round of load: latencies in milliseconds, requests that failed, and the server's processor time for each."""

    latencies: tuple[float, ...]
    failed: int
    processor: float

    def percentile(self, percent: float) -> float:
        """A percentile of the latencies; a round without answers has none that is finite."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("inf")

    def held(self, limit: float) -> bool:
        """Whether every request was answered, and 99 % of them in time."""
        return not self.failed and self.percentile(99) <= limit


def copy_of(model: DeployedModel, repository: Path, name: str, serving: Serving) -> None:
    """Deploy a model once more, under another name and with other settings."""

    def fill(folder: Path, version: int) -> Manifest:
        for file in model.manifest.files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(model.folder / file, target) if file != "config.pbtxt" else target.write_text(f'name: "{name}"\n')
        return replace(model.manifest, name=name, version=version, serving=serving, files={})

    publish_version(repository, name, fill)


@contextmanager
def server(repository: Path, cores: str) -> Iterator[dict[str, Any]]:
    """A running server; what it announced."""
    program = [sys.executable, "-P", "-m", "bnfold", "serve", str(repository)]
    options = ["--http-port", "0", "--grpc-port", "0", "--json", "--quiet", "--max-requests", "4096"]
    pinned = ["taskset", "-c", cores] if cores else []
    with subprocess.Popen([*pinned, *program, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield {"process": process.pid, **json.loads(process.stdout.readline())}
        finally:
            process.terminate()


def processor_seconds(process: int) -> float:
    """The processor time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def feeds(model: DeployedModel, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs."""
    draw = np.random.default_rng(0)
    return {
        spec.name: draw.normal(size=[rows, *(size or 1 for size in spec.shape[1:])]).astype(spec.dtype)
        for spec in model.inputs
    }


def say_whether_bits_differ(model: DeployedModel) -> None:
    """Run rows one by one and as one batch, and print by how much the answers differ."""
    session = create_session(model.model, SessionOptions(threads=1))
    rows = model.serving.max_batch
    together = feeds(model, rows)
    batch = run_session(session, together)
    alone = [run_session(session, {k: v[row : row + 1] for k, v in together.items()}) for row in range(rows)]
    off = max(float(np.abs(np.concatenate([one[name] for one in alone]) - batch[name]).max()) for name in batch)
    print(
        f"{rows} rows one by one and as a batch: "
        + ("the same bits" if off == 0 else f"they differ by up to {off:.1g}")
    )


@asynccontextmanager
async def client(protocol: str, address: str, model: DeployedModel, name: str, rows: int) -> Any:
    """A function that sends one request of random numbers and waits for its answer."""
    if protocol == "grpc":
        import tritonclient.grpc as types
        import tritonclient.grpc.aio as clients
    else:
        import tritonclient.http as types
        import tritonclient.http.aio as clients
    inputs = []
    for feed_name, values in feeds(model, rows).items():
        datatype = next(spec.datatype for spec in model.inputs if spec.name == feed_name)
        inputs.append(types.InferInput(feed_name, values.shape, datatype))
        inputs[-1].set_data_from_numpy(values)
    options = {"conn_limit": 1000} if protocol == "http" else {}
    api = clients.InferenceServerClient(address, **options)

    async def ask() -> None:
        await api.infer(name, inputs)

    try:
        yield ask
    finally:
        await api.close()


async def load(ask: Ask, process: int, rate: float, seconds: float, draw: np.random.Generator) -> Round:
    """One round: Poisson arrivals at ``rate`` a second, each timed from when it was due."""
    due = np.cumsum(draw.exponential(1 / rate, max(int(rate * seconds), 20)))
    latencies: list[float] = []
    failed = 0
    before = processor_seconds(process)
    start = time.perf_counter()

    async def one(moment: float) -> None:
        nonlocal failed
        try:
            await asyncio.wait_for(ask(), 10)
            latencies.append((time.perf_counter() - start - moment) * 1e3)
        except Exception:
            failed += 1

    tasks = []
    for moment in due:
        wait = moment - (time.perf_counter() - start)
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(moment)))
    await asyncio.gather(*tasks)
    return Round(tuple(latencies), failed, (processor_seconds(process) - before) / len(due) * 1e3)


async def rates_held(
    asks: dict[str, Ask], process: int, limit: float, seconds: float, draw: np.random.Generator
) -> dict[str, float]:
    """The greatest rate of a ladder that each variant holds in two rounds of three; they take turns on every rung."""
    rate, held, climbing = 64.0, dict.fromkeys(asks, 0.0), set(asks)
    while climbing:
        for variant in sorted(climbing):
            rounds = [(await load(asks[variant], process, rate, seconds, draw)).held(limit) for _ in range(2)]
            if rounds[0] != rounds[1]:
                rounds.append((await load(asks[variant], process, rate, seconds, draw)).held(limit))
            if sum(rounds) >= 2:
                held[variant] = rate
            else:
                climbing.discard(variant)
        rate *= 1.19  # four rungs to twice the rate
    return held


def shown(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the least and greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


async def measure(arguments: argparse.Namespace, model: DeployedModel, announced: dict[str, Any]) -> None:
    """Search the rates, then measure latencies in pairs, and print both."""
    draw = np.random.default_rng(arguments.seed)
    address, process = announced[arguments.protocol], announced["process"]
    async with (
        client(arguments.protocol, address, model, "batched", arguments.rows) as batched,
        client(arguments.protocol, address, model, "alone", arguments.rows) as alone,
    ):
        asks: dict[str, Ask] = {"batched": batched, "alone": alone}
        for ask in asks.values():
            await load(ask, process, 50, 1, draw)  # warm up
        held = await rates_held(asks, process, arguments.limit, arguments.seconds, draw)
        for variant in VARIANTS:
            print(f"{variant}: holds {held[variant]:.0f} requests a second (p99 ≤ {arguments.limit:g} ms)", flush=True)
        low = min(held.values())
        if not low:
            raise SystemExit("the lowest rate of the ladder is not held: this machine is busy with something else")
        for rate in sorted({low / 4, low / 2, *held.values()}):
            rounds: dict[str, list[Round]] = {variant: [] for variant in VARIANTS}
            for _ in range(arguments.rounds):
                for variant in VARIANTS:
                    rounds[variant].append(await load(asks[variant], process, rate, arguments.seconds, draw))
            for variant in VARIANTS:
                done = rounds[variant]
                p50, p99 = (shown([one.percentile(percent) for one in done]) for percent in (50, 99))
                failed = sum(one.failed for one in done)
                own = f"server {shown([one.processor for one in done], 2)} ms a request"
                print(f"{rate:6.0f}/s {variant:8} p50 {p50} ms  p99 {p99} ms  {own}  failed {failed}", flush=True)


def main() -> None:
    """Parse, serve, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("name")
    parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    parser.add_argument("--rows", type=int, default=1, help="rows of a request")
    parser.add_argument("--limit", type=float, default=50.0, help="milliseconds in which 99 %% must be answered")
    parser.add_argument("--delay", type=float, default=2.0, help="milliseconds that a request waits for others")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each variant at each rate")
    parser.add_argument("--threads", type=int, default=1, help="threads of the session")
    parser.add_argument("--server-cores", default="", help="cores of the server, as taskset takes them; all by default")
    parser.add_argument("--client-cores", default="", help="cores of the client")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = next(model for model in read_repository(arguments.repository) if model.name == arguments.name)
    serving = replace(model.serving, threads=arguments.threads, instances=1)
    say_whether_bits_differ(model)
    batching = DynamicBatching(queue_delay_us=int(arguments.delay * 1000))
    if arguments.client_cores:
        subprocess.run(
            ["taskset", "-p", "-c", arguments.client_cores, str(os.getpid())], check=True, stdout=subprocess.DEVNULL
        )
    with tempfile.TemporaryDirectory(dir=arguments.repository.resolve().parent) as folder:
        repository = Path(folder) / "repository"
        copy_of(model, repository, "batched", replace(serving, batching=batching))
        copy_of(model, repository, "alone", replace(serving, batching=None))
        with server(repository, arguments.server_cores) as announced:
            asyncio.run(measure(arguments, model, announced))


if __name__ == "__main__":
    main()
