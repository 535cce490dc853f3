"""What several hosts cost: the demonstration's search on clusters of one, two and more CPU nodes of this machine.

Every node has one CPU in Ray's accounting, a host process of one thread, and two trials at once. Nodes share this
machine's cores, so what is measured is what scheduling costs and what the driver takes, not what machines would add.
A cluster is started for each search and joined with --address, in turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

# Before Ray is loaded: no tokens between processes of one machine, and sockets in a path of few characters.
FOLDER = Path(f"/tmp/hosts-{os.getpid()}")
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(FOLDER), "RAY_USAGE_STATS_ENABLED": "0"}
os.environ.pop("RAY_ADDRESS", None)

from ray.cluster_utils import Cluster  # noqa: E402

from adept_tune.tuning.journal import Event, Journal  # noqa: E402
from adept_tune.tuning.spec import JOURNAL  # noqa: E402


@dataclass(frozen=True)
class Run:
    """One search.

    Attributes:
        steps_a_s: Trial-steps a second, from when every seat has reported to the last report of the search phase.
        wall_s: Of the search's process.
        driver_s: CPU seconds of that process.
        reports: Lines of the journal that are reports, those of retraining included.
    """

    steps_a_s: float
    wall_s: float
    driver_s: float
    reports: int


@contextmanager
def cluster_of(num_hosts: int) -> Iterator[str]:
    """The address of a cluster of so many nodes, for the time of a block."""
    cluster = Cluster()
    try:
        for _ in range(num_hosts):
            cluster.add_node(num_cpus=1, include_dashboard=False)
        cluster.wait_for_nodes()
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def search(num_hosts: int, options: argparse.Namespace, folder: Path) -> Run:
    """Run the search on a cluster of its own."""
    command = [sys.executable, "-m", "adept_tune.search", "--task", "demo", "--experiment", str(folder)]
    command += ["--trials", str(options.trials), "--max-steps", str(options.max_steps), "--device", "cpu"]
    command += ["--scheduler", "none", "--sampler", "random", "--finalists", "1", "--seeds", "1"]
    command += ["--trials-per-gpu", "2", "--set", "num_threads=1", "--precision", "fp32"]
    with cluster_of(num_hosts) as address, (FOLDER / "search.log").open("wb") as log:
        begun = monotonic()
        process = subprocess.Popen([*command, "--address", address], stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = monotonic() - begun
    if status:
        raise RuntimeError(f"the search on {num_hosts} hosts failed:\n{(FOLDER / 'search.log').read_text()}")
    events = list(Journal(folder / JOURNAL).read())
    searched = [event for event in events if event["event"] == "reported"]
    reports = [event for event in events if event["event"].endswith("reported")]
    # The clock begins once every seat has reported, so start-up is not counted; nor is what was trained by then.
    seats = 2 * num_hosts
    begin = next(i for i in range(len(searched)) if len({event["trial"] for event in searched[: i + 1]}) == seats)
    steps = trained(searched) - trained(searched[: begin + 1])
    took_s = searched[-1]["time"] - searched[begin]["time"]
    return Run(steps / took_s, wall_s, used.ru_utime + used.ru_stime, len(reports))


def trained(reports: Sequence[Event]) -> int:
    """Steps of all trials by their last reports."""
    return sum({event["trial"]: event["step"] for event in reports}.values())


def table(found: dict[int, list[Run]]) -> str:
    """One line a number of hosts; medians, and half the range."""
    heads = ["hosts", "trials at once", "trial-steps/s", "of one host", "search's wall time, s"]
    heads += ["driver's CPU, share of a core", "ms of it a report"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---:"] * len(heads)) + " |"]
    alone = median(run.steps_a_s for run in found[min(found)])

    def told(values: Sequence[float], digits: int) -> str:
        return f"{median(values):.{digits}f} ± {(max(values) - min(values)) / 2:.{digits}f}"

    for num_hosts, runs in sorted(found.items()):
        cells = [str(num_hosts), str(2 * num_hosts), told([run.steps_a_s for run in runs], 1)]
        cells += [f"{median(run.steps_a_s for run in runs) / alone:.2f}", told([run.wall_s for run in runs], 1)]
        cells += [told([run.driver_s / run.wall_s for run in runs], 2)]
        cells += [told([1000 * run.driver_s / run.reports for run in runs], 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hosts", nargs="+", type=int, default=[1, 2, 3], help="numbers of nodes (default: 1 2 3)")
    p.add_argument("--trials", type=int, default=24, help="(default: %(default)s)")
    p.add_argument("--max-steps", type=int, default=300, help="(default: %(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="searches on each cluster (default: %(default)s)")
    p.add_argument("--out", type=Path, help="file for the table")
    options = p.parse_args()
    FOLDER.mkdir()
    found: dict[int, list[Run]] = {num_hosts: [] for num_hosts in options.hosts}
    try:
        for number in range(options.rounds):
            for num_hosts, runs in found.items():
                runs.append(search(num_hosts, options, FOLDER / f"found-{number}-{num_hosts}"))
                print(f"{num_hosts} hosts: {runs[-1]}", flush=True)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    command = f"`python experiments/cluster/hosts.py --trials {options.trials} --max-steps {options.max_steps}`"
    text = f"{command}, {options.rounds} rounds, {os.cpu_count()} cores.\n\n{table(found)}\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
