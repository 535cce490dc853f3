"""Kill a search again and again, resume it, and compare it with one that was never interrupted.

Every kill is SIGKILL to the driver's process group at a point drawn uniformly over the bytes of the reference run's
journal. A fifth of the kills fall inside a line and a fifth between the writing of a trial's state and its line.
With one slot the order of events is fixed, and a resumed search must be the reference to the last bit. With several
it is not, and what must hold is that nothing is lost, doubled or done twice.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adept_tune.console import Console
from adept_tune.tracking import versions
from adept_tune.tuning.experiment import Experiment, search_events
from adept_tune.tuning.journal import Event, Journal
from adept_tune.tuning.materials import Materials, gather
from adept_tune.tuning.ray_tune import Share
from adept_tune.tuning.space import SpaceFile
from adept_tune.tuning.spec import ADAPTER, JOURNAL, SPEC, SearchSpec

HERE = Path(__file__).resolve().parent
MARK = "ADEPT_TUNE_CAMPAIGN"  # in the environment of every process of a run, Ray's included
RUN_LIMIT_S, END_LIMIT_S = 600, 60
DECIDING = (
    *("proposed", "reported", "decided", "ended"),
    *("retraining", "retrain_reported", "retrain_ended", "tested", "winner"),
)
TIMES = ("time", "seconds")
NEXT_PROPOSALS = 5
COMPARING = threading.Lock()  # Optuna and transformers are loaded by the first comparison


@dataclass(frozen=True)
class Kill:
    """Where a search is killed."""

    line: int
    place: str
    delay_s: float


@dataclass(frozen=True)
class Outcome:
    """What a killed and resumed search is compared by; each entry is "same" or says the difference."""

    checks: dict[str, str]

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return all(value == "same" for value in self.checks.values())


def arguments(folder: Path, options: argparse.Namespace) -> list[str]:
    """The search of the campaign."""
    return [
        *("--task", "demo", "--space", str(HERE / "space.yaml"), "--trials", str(options.trials)),
        *("--max-steps", str(options.max_steps), "--batch-size", "8", "--finalists", "2", "--seeds", "2"),
        *("--trials-per-gpu", str(options.slots), "--device", "cpu", "--set", "num_threads=1"),
        *("--experiment", str(folder)),
    ]


def run(folder: Path, options: argparse.Namespace, kill: Kill | None, resume: bool) -> tuple[int, list[str]]:
    """One session of a search, in a process group of its own.

    Returns:
        Its exit code, and the titles of its processes that were still there a minute after it ended.
    """
    mark = uuid.uuid4().hex
    command = [sys.executable, str(HERE / "driver.py")]
    if kill is not None:
        command += ["--line", str(kill.line), "--place", kill.place, "--delay", str(kill.delay_s)]
    command += ["--", *arguments(folder, options), *(["--resume", str(folder)] if resume else [])]
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(HERE.parents[1])}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    deadline = time.monotonic() + END_LIMIT_S
    while (left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    titles = []
    for pid in left:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            titles.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80])
            os.kill(pid, signal.SIGKILL)
    return code, titles


def processes_with(mark: str) -> list[int]:
    """Processes that carry a mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile, or is not ours
    return found


def draw_kills(reference: Path, count: int, rng: random.Random) -> list[Kill]:
    """Points uniform over the bytes of a journal: of five, one inside a line and one before a report's line."""
    lines = (reference / JOURNAL).read_bytes().splitlines(keepends=True)
    events = [json.loads(line) for line in lines]
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    reports = [i for i, event in enumerate(events) if event["event"].endswith("reported")]
    kills = []
    for i in range(count):
        offset = rng.randrange(ends[-1])
        line = next(number for number, end in enumerate(ends) if offset < end)
        if i % 5 == 0:
            kills.append(Kill(line, "inside", 0.0))
        elif i % 5 == 1:
            kills.append(Kill(nearest(reports, line), "before", 0.0))
        else:
            gap = events[line + 1]["time"] - events[line]["time"] if line + 1 < len(events) else 0.0
            kills.append(Kill(line, "after", round(rng.uniform(0, max(gap, 0.0)), 3)))
    return kills


def nearest(lines: list[int], line: int) -> int:
    """The line of a list that is nearest to a line."""
    return min(lines, key=lambda other: abs(other - line))


def compare(reference: Path, folder: Path, options: argparse.Namespace) -> Outcome:
    """A resumed search against the one that was never interrupted."""
    ours, theirs = events_of(folder), events_of(reference)
    checks = {
        "reports done twice": _same(0, repeated(ours)),
        "MLflow": _same(runs_of(ours), mlflow_runs(folder)),
    }
    if options.slots > 1:
        proposed = Counter(event["trial"] for event in ours if event["event"] == "proposed")
        checks["every trial once"] = _same(Counter(range(options.trials)), proposed)
        ended = Counter(event["trial"] for event in ours if event["event"] == "ended")
        checks["every end once"] = _same(Counter(range(options.trials)), ended)
        return Outcome(checks)
    for kind in DECIDING:
        checks[kind] = _same([e for e in theirs if e["event"] == kind], [e for e in ours if e["event"] == kind])
    checks["order of events"] = _same([e["event"] for e in theirs], [e["event"] for e in ours])
    checks["rungs and next proposals"] = _same(rebuilt(reference), rebuilt(folder))
    checks["winner's file"] = _same(
        *[(root / ADAPTER / "adapter.safetensors").read_bytes() for root in (reference, folder)]
    )
    metrics = [json.loads((root / ADAPTER / "adapter.json").read_text())["metrics"] for root in (reference, folder)]
    checks["winner's metrics"] = _same(*metrics)
    return Outcome(checks)


def events_of(folder: Path) -> list[Event]:
    """The events that decide, without times, and without the ends that an interruption gave."""
    kept = [event for event in Journal(folder / JOURNAL).read() if event["event"] in DECIDING]
    kept = [event for event in kept if event.get("state") != "INTERRUPTED"]
    return [{key: value for key, value in event.items() if key not in TIMES} for event in kept]


def repeated(events: list[Event]) -> int:
    """Reports of a step that had been reported before."""
    seen = Counter(
        (event["event"], event["trial"], event.get("seed"), event["step"])
        for event in events
        if event["event"].endswith("reported")
    )
    return sum(count - 1 for count in seen.values())


def runs_of(events: list[Event]) -> dict[str, int]:
    """The runs that MLflow must have of a finished search, each once, by name, status and end state."""
    ends = [event for event in events if event["event"] in ("ended", "retrain_ended")]
    names = [f"trial-{e['trial']:04d}" + (f"-seed-{e['seed']}" if "seed" in e else "") for e in ends]
    states = [event["state"] for event in ends]
    statuses = ["FAILED" if state == "FAILED" else "FINISHED" for state in states]
    runs = [f"{name} {status} {state}" for name, status, state in zip(names, statuses, states, strict=True)]
    return dict(Counter(["search FINISHED FINISHED", *runs]))


def mlflow_runs(folder: Path) -> dict[str, int]:
    """How many runs there are of each name, status and end state; the search's own run without its name."""
    connection = sqlite3.connect(folder / "mlflow.db")
    rows = connection.execute(
        "select r.name, r.status, t.value from runs r "
        "left join tags t on t.run_uuid = r.run_uuid and t.key = 'end_state'"
    ).fetchall()
    connection.close()
    return dict(
        Counter(f"{name if name.startswith('trial-') else 'search'} {status} {end}" for name, status, end in rows)
    )


def rebuilt(folder: Path) -> dict[str, Any]:
    """The rung table of a replayed journal, and what the sampler proposes next."""
    spec = SearchSpec.read(folder)
    longer = spec.model_copy(update={"trials": spec.trials + NEXT_PROPOSALS})
    with tempfile.TemporaryDirectory() as scratch:
        copy, console = Path(scratch), Console(io.StringIO())
        shutil.copy(folder / JOURNAL, copy / JOURNAL)
        experiment = Experiment(longer, copy, _materials(spec), _Silent(), console, "", Share(0, 0, 1, lambda: 1))  # type: ignore[arg-type]
        study = experiment.study(lambda: False)
        study.replay(search_events(list(Journal(copy / JOURNAL).read())))
        jobs = [study.next() for _ in range(NEXT_PROPOSALS)]
        table = {step: list(values) for step, values in study.rule.table().items()}
        return {"rungs": table, "next": [None if job is None else job.config.model_dump() for job in jobs]}


class _Silent:
    """A tracker that shows nothing."""

    def record(self, event: Event) -> None:
        """Nothing to show."""


def _materials(spec: SearchSpec) -> Materials:
    file = SpaceFile.model_validate(spec.space)
    data_dir = Path(spec.data_dir) if spec.data_dir else None
    return gather(spec.task, data_dir, spec.backbone["name"], file, spec.fixed, spec.labels)


def _same(expected: Any, found: Any) -> str:
    if expected == found:
        return "same"
    if isinstance(expected, bytes):
        return "differs"
    if isinstance(expected, list) and isinstance(found, list):
        first = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
        if first is None:
            return f"{len(found)} instead of {len(expected)}"
        return f"number {first} is {found[first]} instead of {expected[first]}"
    return f"{found} instead of {expected}"


def summary(reference: Path) -> str:
    """What the reference run consists of."""
    events = list(Journal(reference / JOURNAL).read())
    ends = Counter(event["state"] for event in events if event["event"] == "ended")
    rungs = sorted({event["step"] for event in events if event["event"] == "decided"})
    reruns = sum(event["event"] == "retrain_ended" for event in events)
    size = (reference / JOURNAL).stat().st_size
    text = ", ".join(f"{count} {state}" for state, count in sorted(ends.items()))
    trials = f"{sum(ends.values())} trials ({text}), rungs at {rungs}"
    return f"{trials}, {reruns} retrainings, {len(events)} events, {size} bytes"


def table(reference: Path, rows: list[tuple[Kill, Outcome, list[str]]], options: argparse.Namespace) -> str:
    """The campaign in Markdown."""
    found = versions() | {"python": platform.python_version()}
    events = list(Journal(reference / JOURNAL).read())
    exact = sum(outcome.exact for _, outcome, _ in rows)
    left_behind = sum(len(left) for _, _, left in rows)
    words = "the same to the last bit" if options.slots == 1 else "nothing lost, doubled or done twice"
    lines = [
        f"`python experiments/reliability/kill_campaign.py --kills {options.kills} --seed {options.seed} "
        f"--slots {options.slots} --jobs {options.jobs}`",
        "",
        f"Reference: {summary(reference)}.",
        ", ".join(f"{name} {found.get(name)}" for name in ("ray", "optuna", "mlflow", "torch", "python"))
        + f", {os.cpu_count()} cores.",
        "",
        f"**{exact} of {len(rows)}: {words}**; processes left behind a minute after an end: {left_behind}.",
        "",
        "| kill | at journal line | place | result |",
        "| --- | --- | --- | --- |",
    ]
    for number, (kill, outcome, left) in enumerate(rows):
        event = events[kill.line]
        what = event["event"] + (f" (trial {event['trial']})" if "trial" in event else "")
        place = f"after, {kill.delay_s:.2f} s" if kill.place == "after" else kill.place
        faults = [f"{name}: {value[:200]}" for name, value in outcome.checks.items() if value != "same"]
        faults += [f"left behind: {title}" for title in left]
        lines.append(f"| {number} | {kill.line}, {what} | {place} | {'; '.join(faults) or 'same'} |")
    return "\n".join(lines) + "\n"


def campaign(work: Path, options: argparse.Namespace) -> tuple[str, bool]:
    """Reference, kills, comparison. Gives the table, and whether every search was exact."""
    reference = work / "reference"
    code, _ = run(reference, options, None, resume=False)
    if code != 0:
        raise SystemExit(f"the reference run ended with exit code {code}; see {work}/reference.log")
    print(f"reference: {summary(reference)}", flush=True)
    kills = draw_kills(reference, options.kills, random.Random(options.seed))
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(kill_once, work, reference, number, kill, options) for number, kill in enumerate(kills)]
        rows = [future.result() for future in running]
    exact = all(outcome.exact and not left for _, outcome, left in rows)
    return table(reference, rows, options), exact


def kill_once(
    work: Path, reference: Path, number: int, kill: Kill, options: argparse.Namespace
) -> tuple[Kill, Outcome, list[str]]:
    """Kill one search, resume it and compare it. Gives the processes it left behind as well."""
    folder, begun = work / f"kill-{number}", time.monotonic()
    killed, left = run(folder, options, kill, resume=False)
    resumable = (folder / SPEC).exists()
    code, left_after = run(folder, options, None, resume=resumable)
    with COMPARING:
        outcome = compare(reference, folder, options) if code == 0 else Outcome({"resumed": f"exit code {code}"})
    if killed != -signal.SIGKILL and kill.place != "after":
        outcome = Outcome(outcome.checks | {"killed": f"exit code {killed}"})
    verdict = "exact" if outcome.exact else outcome.checks
    print(f"kill {number} at {kill}: {verdict} ({time.monotonic() - begun:.0f} s)", flush=True)
    if outcome.exact and not options.keep:
        shutil.rmtree(folder)
    return kill, outcome, left + left_after


def main(argv: list[str] | None = None) -> int:
    """Run a campaign and print its table; exit code 1 if any search differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="searches to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills' places (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=1, help="trials at once (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=24, help="of each search (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, default=135, help="of a trial (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="searches side by side (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    parser.add_argument("--work", type=Path, help="folder for the searches (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the searches that were exact")
    options = parser.parse_args(argv)
    if min(options.kills, options.slots, options.trials, options.max_steps, options.jobs) < 1:
        print("error: --kills, --slots, --trials, --max-steps and --jobs must be at least 1", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        text, exact = campaign(work, options)
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
