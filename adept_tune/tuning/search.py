"""From a request to an exported adapter: gather, probe, search, retrain, test, export."""

import contextlib
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from pydantic import ValidationError

from adept_tune.adapter import read_start
from adept_tune.backbones.load import Precision, best_precision, fetch_weights
from adept_tune.console import Console
from adept_tune.errors import SpecError, StateError
from adept_tune.methods import IN_MODEL, get_method
from adept_tune.tasks import Task, get_task
from adept_tune.tasks.task import Protocol
from adept_tune.tracking import MlflowTracker
from adept_tune.tuning.cluster import (
    LOCAL,
    affordable_slots,
    ask,
    await_gpu,
    broker_of,
    has_gpu,
    launchable_gpus,
    node_cpus,
    ray_session,
    settle,
    share_of,
)
from adept_tune.tuning.experiment import (
    Experiment,
    progress_of,
    search_time_left_s,
    shape_of,
    storage_of,
    trial_config,
)
from adept_tune.tuning.host import HostPlan
from adept_tune.tuning.journal import Journal
from adept_tune.tuning.lock import locked
from adept_tune.tuning.materials import Materials, check_unchanged, gather
from adept_tune.tuning.options import OPTIONS
from adept_tune.tuning.plan import MOST_STEPS, Costs, Estimate, estimate, fit
from adept_tune.tuning.ray_tune import Drive, Share, run_work
from adept_tune.tuning.rungs import Scheduler
from adept_tune.tuning.samplers import make_proposer
from adept_tune.tuning.space import Sampler, SearchSpace, SpaceFile, Value, is_space, read_space, resolve_space
from adept_tune.tuning.spec import DEFAULT_BATCH_SIZE, JOURNAL, SPEC, SearchSpec
from adept_tune.tuning.store import Store
from adept_tune.tuning.telling import plan_lines
from adept_tune.tuning.work import Progress

BUDGET_S = {"cpu": 3600.0, "cuda": 8 * 3600.0}
MODEL = {"cpu": "google-t5/t5-small", "cuda": "google-t5/t5-base"}
TRIALS = {"cpu": 16, "cuda": 32}
DEMONSTRATION_TRIALS, DEMONSTRATION_BATCH_SIZE = 16, 16
# What the probe tries: trials at once, and most tokens of a pass. On a CPU 1,024 tokens of T5-small are near the
# arithmetic peak already, and short passes pad little.
COMPANIES: dict[str, list[int]] = {"cpu": [4, 8, 16], "cuda": [8, 16, 32, 64]}
TOKENS_PER_PASS: dict[str, list[int | None]] = {"cpu": [1024, 4096], "cuda": [16384, None]}

Hosts = Callable[[SearchSpec, Materials, dict[str, Progress], Path], contextlib.AbstractContextManager[str]]


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None leaves the choice to us.

    `resume` is a folder, or ``.`` for the newest experiment of the same search.
    """

    task: str
    protocol: Protocol = "ours"
    allow_code_execution: bool = False
    method: str | None = None
    model: str | None = None
    data_dir: Path | None = None
    labels: Literal["digits", "words"] | None = None
    space: str | None = None
    fixed: Mapping[str, Value] | None = None
    init_from: Path | None = None
    trials: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    scheduler: Scheduler = "asha"
    sampler: Sampler = "tpe"
    reduction_factor: float = 3.0
    finalists: int = 3
    seeds: int = 3
    seed: int = 0
    slots: int | None = None
    tokens_per_pass: int | None = None
    max_failures: int = 3
    num_threads: int | None = None
    time_budget_s: float | None = None
    address: str = LOCAL
    storage: str | None = None
    tracking_uri: str | None = None
    experiment: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    resume: Path | None = None
    dry_run: bool = False
    verbose: bool = False


def run_search(request: Request, console: Console, hosts: Hosts | None = None, drive: Drive = run_work) -> int:
    """Run a whole search, or with `dry_run` plan one.

    Args:
        request: What is asked for.
        console: Lines for people.
        hosts: Gives the search its broker for the time of a block; None makes one.
        drive: Runs the jobs of the search and of the retraining.

    Returns:
        Exit code: 0 done, 3 no trial finished.

    Raises:
        AdeptError: Before any trial has started, for anything wrong with the request.
        KeyboardInterrupt: The user stopped it; what was done is kept.
    """
    begun = monotonic()
    with ray_or_no_ray(request) as start_ray:
        device = _device(request, start_ray)
        task = get_task(request.task, request.protocol)
        file = _space_file(request, task)
        folder = request.experiment or _new_folder(task, file.method)
        if not request.dry_run and request.resume is None:
            check_folder(folder)
        materials = gather(
            task.reference,
            request.data_dir,
            request.model or _model_for(task, device),
            file,
            request.fixed,
            request.labels,
            protocol=request.protocol,
            allow_code_execution=request.allow_code_execution,
        )
        if request.address == LOCAL:
            fetch_weights(materials.info)
        draft = _draft(request, materials, file, device)
        if request.resume is not None:
            folder, draft = _resumed(request, draft)
            console.say(f"Resuming {folder}")
            materials = _with_space(materials, draft)
        check_before_ray(draft, materials)
        tracker = MlflowTracker(draft.tracking_uri, folder)
        tracker.check()
        with contextlib.ExitStack() as held:
            if not request.dry_run:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
            start_ray()
            progress = progress_of(list(Journal(folder / JOURNAL).read()))
            broker = held.enter_context((hosts or _hosts)(draft, materials, progress, folder))
            if not request.dry_run:
                tracker.prepare()  # the driver has nothing to do until a host has loaded
                held.callback(tracker.close, "FAILED")  # for a search that does not come to its start
            await_gpu(_share(draft, request.address), console.say)
            spec = draft
            if request.resume is not None:
                share = _share(spec, request.address)
                ask(broker, share, "load", (materials.data,))  # a host that cannot load is told before any trial
            else:
                spec, expected = _planned(request, draft, materials, broker, begun)
                check_trials(spec, materials)  # now that their steps are settled
                share = _share(spec, request.address)
                for line in plan_lines(spec, materials, expected, share.concurrent):
                    console.say(line)
            if request.dry_run:
                return 0
            spec.write(folder)
            return Experiment(spec, folder, materials, tracker, console, broker, share, drive, begun).run()


def run_retrain(
    folder: Path,
    finalists: int | None,
    seeds: int | None,
    tracking_uri: str | None,
    address: str,
    verbose: bool,
    console: Console,
) -> int:
    """Repeat the retraining of a finished search, with other numbers of finalists or seeds, or elsewhere, where given.

    Returns:
        Exit code: 0 done, 3 no trial to retrain.

    Raises:
        AdeptError: No such experiment, or its model or rows have changed.
    """
    for flag, number in (("--finalists", finalists), ("--seeds", seeds)):
        if number is not None and number < 1:
            raise SpecError(f"{flag} {number}: give a whole number of at least 1")
    spec = SearchSpec.read(folder)
    changes = {
        "finalists": finalists or spec.finalists,
        "seeds": seeds or spec.seeds,
        "tracking_uri": tracking_uri or spec.tracking_uri,
    }
    spec = spec.model_copy(update=changes)
    materials = gather(
        spec.task,
        Path(spec.data_dir) if spec.data_dir else None,
        spec.backbone["name"],
        SpaceFile.model_validate(spec.space),
        spec.fixed,
        None,  # they are among the fixed
        revision=None if spec.backbone["local"] else spec.backbone["revision"],
        protocol=spec.protocol,
        allow_code_execution=spec.allow_code_execution,
    )
    check_unchanged(spec, materials)
    tracker = MlflowTracker(spec.tracking_uri, folder)
    tracker.check()
    with contextlib.ExitStack() as held:
        held.enter_context(locked(folder))
        held.enter_context(ray_session(address, verbose))
        if spec.device == "cuda" and not (has_gpu() or launchable_gpus(address)):
            raise SpecError(f"{folder}: was searched on a GPU, and there is none here; join a cluster with --address")
        progress = progress_of(list(Journal(folder / JOURNAL).read()))
        broker, share = held.enter_context(_hosts(spec, materials, progress, folder)), _share(spec, address)
        tracker.prepare()
        held.callback(tracker.close, "FAILED")
        await_gpu(share, console.say)
        ask(broker, share, "load", (materials.data,))  # a host that cannot load is told before any state is dropped
        experiment = Experiment(spec, folder, materials, tracker, console, broker, share)
        return experiment.run_retrain_only()


@contextmanager
def ray_or_no_ray(request: Request) -> Iterator[Callable[[], None]]:
    """Give a function that starts or joins Ray when called, and end what it started.

    A local Ray takes seconds to start, so whatever can be wrong with a request is looked at first.
    """
    started = False
    with contextlib.ExitStack() as stack:

        def start() -> None:
            nonlocal started
            if not started:
                stack.enter_context(ray_session(request.address, request.verbose))
                started = True

        yield start


@contextmanager
def _hosts(spec: SearchSpec, materials: Materials, progress: dict[str, Progress], folder: Path) -> Iterator[str]:
    """The search's broker."""
    start = None
    if spec.init_from is not None:
        start, sha256 = read_start(Path(spec.init_from), spec.method, materials.info)
        if sha256 != spec.init_sha256:
            raise SpecError(f"--init-from {spec.init_from}: is not the adapter that the search began with; restore it")
    plan = HostPlan(
        backbone=spec.backbone,
        method=spec.method,
        device=spec.device,
        precision=spec.precision,
        num_slots=spec.slots,
        tokens_per_pass=spec.tokens_per_pass,
        num_threads=spec.num_threads or node_cpus(),
        num_lanes=spec.num_lanes,
        widest=_widest(materials.space),
        start=start,
    )
    storage = storage_of(spec, folder)
    with broker_of(spec.search_id, plan, materials.data, storage, progress) as broker:
        yield broker


def _share(spec: SearchSpec, address: str) -> Share:
    """What each trial holds of its device."""
    return share_of(spec.device, spec.slots, launchable_gpus(address))


def _widest(space: SearchSpace) -> tuple[int, int]:
    """Longest prompt and widest bottleneck that a space admits."""
    sizes = [space.sizes(point) for point in space.corners()]
    return max(size.prompt_length for size in sizes), max(size.width for size in sizes)


def companies(method: str, device: str, trials: int | None) -> list[int]:
    """Trials at once that the probe tries; those inside the model share nothing, and each has a copy of it.

    Beyond the fewest, no more than a quarter of all trials: sampler and rungs learn only from those that came before.
    """
    if method in IN_MODEL:
        return [1]
    fewest, *more = COMPANIES[device]
    return [fewest, *(slots for slots in more if 4 * slots <= (trials or TRIALS[device]))]


def _device(request: Request, start_ray: Callable[[], None]) -> Literal["cpu", "cuda"]:
    if request.device == "cpu":
        return "cpu"
    if request.address == LOCAL:
        import torch

        there = torch.cuda.is_available()
    else:
        start_ray()
        there = launchable_gpus(request.address) > 0 or has_gpu()
    if request.device == "cuda" and not there:
        place = "this machine" if request.address == LOCAL else f"the cluster at {request.address}"
        raise SpecError(f"--device cuda: no GPU on {place}; use --device cpu, or join a cluster with --address")
    return "cuda" if there else "cpu"


def _with_space(materials: Materials, spec: SearchSpec) -> Materials:
    """Search the space of the experiment; a newer version of the package may have another under the same name."""
    file = SpaceFile.model_validate(spec.space)
    space = resolve_space(file, materials.info.d_model, materials.task.max_source_length, spec.fixed)
    return replace(materials, space=replace(space, method=materials.space.method))  # it has a model to count on


def _resumed(request: Request, draft: SearchSpec) -> tuple[Path, SearchSpec]:
    """The folder and spec of the experiment to go on with; trials, time, finalists and seeds may have changed.

    Raises:
        SpecError: There is none, or it is of another search; the differences are shown.
    """
    assert request.resume is not None
    given = request.resume if str(request.resume) != "." else request.experiment
    folders = [given] if given else sorted(Path("runs").glob(f"*/{SPEC}"), key=os.path.getmtime, reverse=True)
    differences: list[str] = []
    damaged: list[str] = []
    for folder in (path.parent if path.name == SPEC else path for path in folders):
        try:
            old = SearchSpec.read(folder)
        except StateError as error:
            if given:
                raise
            damaged.append(str(error))
            continue
        left_open: dict[str, Any] = {"max_steps": request.max_steps, "precision": request.precision}
        if old.space.get("source") == draft.space.get("source"):  # what the package has under that name may change
            left_open["space"] = request.space
        settled = {name: getattr(old, name) for name, value in left_open.items() if value is None}
        new = draft.model_copy(update=settled)
        differences = old.differences(new)
        if not differences:
            kept = {
                "search_id": old.search_id,
                "start_s": old.start_s,
                "retrain_s": old.retrain_s,
                "expected_s": old.expected_s,
                "padded_share": old.padded_share,
                "embedding_rms": old.embedding_rms,
                "trials": old.trials if request.trials is None else request.trials,
                "time_budget_s": _budget(request, old),
            }
            if old.device == new.device:  # what the probe found there
                num_threads = request.num_threads or old.num_threads
                kept |= {
                    "num_threads": num_threads,
                    "num_lanes": min(old.num_lanes, num_threads or old.num_lanes),
                    "tokens_per_pass": request.tokens_per_pass or old.tokens_per_pass,
                    "slots": request.slots or old.slots,
                }
            resumed = new.model_copy(update=kept)
            if request.time_budget_s and search_time_left_s(resumed, list(Journal(folder / JOURNAL).read())) <= 0:
                raise SpecError(
                    f"--time-budget: {request.time_budget_s:.0f} s are spent, earlier sessions and the retraining to "
                    "come counted; give more, or leave it out"
                )
            return folder, resumed
    if given and differences:
        raise SpecError(f"--resume {given}: this is another search:\n  " + "\n  ".join(differences))
    also = "".join(f"\n  not readable: {error}" for error in damaged)
    raise SpecError(f"--resume: no experiment of this search under runs/; name its folder with --resume DIR{also}")


def _budget(request: Request, old: SearchSpec) -> float | None:
    """The time budget of a resumed search: what is given, else none where trials are added, else the old one."""
    if request.time_budget_s is not None:
        return request.time_budget_s
    more = request.trials is not None and request.trials > old.trials
    return None if more else old.time_budget_s


def _new_folder(task: Task, method: str) -> Path:
    return Path("runs") / f"{task.name}-{method}-{datetime.now():%Y%m%d-%H%M%S}"


def check_folder(folder: Path) -> None:
    """See that an experiment can begin in a folder.

    Raises:
        SpecError: It cannot; says why.
    """
    try:
        if (folder / SPEC).exists() or (folder / JOURNAL).exists():
            raise SpecError(f"--experiment {folder}: an experiment lives there already; give another folder")
        if folder.exists() and not folder.is_dir():
            raise SpecError(f"--experiment {folder}: is a file; give a folder")
        there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    except OSError as error:  # no right to look, or a name that is too long
        raise SpecError(f"--experiment {folder}: {error.strerror}; give another folder") from error
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise SpecError(f"--experiment {folder}: cannot write in {there}; give a folder you may write in")


def _draft(request: Request, materials: Materials, file: SpaceFile, device: str) -> SearchSpec:
    """The spec with a trial and a step to stand in for what the probe decides."""
    sha256 = read_start(request.init_from, file.method, materials.info)[1] if request.init_from else None
    usual = DEMONSTRATION_BATCH_SIZE if materials.task.demonstration else DEFAULT_BATCH_SIZE
    others = {
        "labels": request.labels or "digits",
        "batch_size": usual if request.batch_size is None else request.batch_size,
    }
    settled = {name: materials.space.fixed.get(name, value) for name, value in others.items()}
    try:
        return SearchSpec(
            search_id=uuid.uuid4().hex[:12],
            task=materials.task.reference,
            protocol=materials.task.protocol,
            allow_code_execution=request.allow_code_execution,
            data_dir=str(request.data_dir.resolve()) if request.data_dir else None,
            data_fingerprint=materials.data.fingerprint,
            backbone=materials.info.as_dict(),
            method=file.method,
            space=file.model_dump(mode="json"),
            fixed=dict(request.fixed or {}) | ({"labels": request.labels} if request.labels else {}),
            init_from=str(request.init_from.resolve()) if request.init_from else None,
            init_sha256=sha256,
            trials=1 if request.trials is None else request.trials,
            max_steps=MOST_STEPS if request.max_steps is None else request.max_steps,
            scheduler=request.scheduler,
            sampler=request.sampler,
            reduction_factor=request.reduction_factor,
            finalists=request.finalists,
            seeds=request.seeds,
            seed=request.seed,
            slots=request.slots or companies(file.method, device, request.trials)[-1],
            device=device,  # type: ignore[arg-type]  # pydantic checks it
            precision=request.precision or best_precision(device, materials.info.d_model),
            tokens_per_pass=TOKENS_PER_PASS[device][0] if request.tokens_per_pass is None else request.tokens_per_pass,
            max_failures=request.max_failures,
            num_threads=request.num_threads,
            time_budget_s=request.time_budget_s,
            storage=request.storage,
            tracking_uri=request.tracking_uri,
            **settled,  # type: ignore[arg-type]  # pydantic checks them
        )
    except ValidationError as error:
        faults = "; ".join(
            f"{_flag(str(fault['loc'][0]))}={fault['input']}: {fault['msg']}" for fault in error.errors()
        )
        raise SpecError(faults) from None


def _flag(field: str) -> str:
    """How the command line sets a field of the spec."""
    field = "trials_per_gpu" if field == "slots" else field
    return f"--set {field}" if field in OPTIONS else f"--{field.replace('_', '-')}"


def _model_for(task: Task, device: str) -> str:
    """The model of a search that names none: the one made for the task, or a size that suits the device."""
    return MODEL[device] if task.model is None else str(Path(__file__).parents[1] / task.model)


def _space_file(request: Request, task: Task) -> SpaceFile:
    """The space that method and space ask for; either follows from the other, and a task may have one of its own."""
    if request.method is not None:
        get_method(request.method)
    name = request.space or request.method or "adept"
    of_task = f"{name}-{task.name}"
    file = read_space(of_task if request.space is None and is_space(of_task) else name)
    if request.method not in (None, file.method):
        raise SpecError(f"--method {request.method}: the space {request.space} is for {file.method}")
    return file


def check_before_ray(spec: SearchSpec, materials: Materials) -> None:
    """Everything else that can be wrong, while being wrong is still cheap.

    Raises:
        AdeptError: The storage, the sampler or the trials' settings cannot be used.
    """
    if spec.storage is not None:
        Store(spec.storage).check()
    make_proposer(materials.space, spec.sampler, spec.seed)
    check_trials(spec, materials)


def check_trials(spec: SearchSpec, materials: Materials) -> None:
    """See that whatever the space may propose makes a trial.

    Raises:
        SpecError: It does not, a warm-up longer than the trial for example.
    """
    space = materials.space
    base = next(space.corners())
    ends = [base | {name: end} for name, dimension in space.dimensions.items() for end in dimension.corners()]
    for params in (*space.corners(), *space.points, *ends):
        try:
            trial_config(spec, materials.space, params, 0)
        except ValidationError as error:
            faults = "; ".join(str(fault["msg"]) for fault in error.errors())
            raise SpecError(f"a trial with {params}: {faults}") from None


def _planned(
    request: Request, draft: SearchSpec, materials: Materials, broker: str, begun: float
) -> tuple[SearchSpec, Estimate]:
    """Probe a whole device, and settle how many trials of how many steps, how many at once, and how they are fused."""
    task = materials.task
    params = materials.space.points[0] if materials.space.points else next(materials.space.corners())
    config = trial_config(draft, materials.space, params, 0)
    whole = share_of(draft.device, 1, launchable_gpus(request.address))
    devices = whole.concurrent
    most, of_each = affordable_slots(draft.device), math.ceil((request.trials or TRIALS[draft.device]) / devices)
    tried = companies(draft.method, draft.device, request.trials) if request.slots is None else [request.slots]
    slots_of = {min(slots, of_each): min(slots, most) for slots in reversed(tried)}
    limits = TOKENS_PER_PASS[draft.device] if request.tokens_per_pass is None else [request.tokens_per_pass]
    question = config.model_dump(mode="json"), sorted(slots_of), limits
    (probed,) = ask(broker, whole, "probe", question)
    costs, start_s = Costs(probed["step_s"] / devices, probed["evaluation_s"] / devices), monotonic() - begun
    shape = shape_of(draft, task)
    budget = request.time_budget_s
    trials, max_steps = request.trials, request.max_steps
    if task.demonstration and budget is None:
        trials, max_steps = trials or DEMONSTRATION_TRIALS, max_steps or task.published_steps
    if budget is None and (trials is None or max_steps is None):
        budget = BUDGET_S[draft.device]
    if trials is None or max_steps is None:
        assert budget is not None
        usual, published = TRIALS[draft.device], task.published_steps
        trials, max_steps = fit(budget, start_s, costs, shape, trials, max_steps, usual, published)
    found = {
        "num_slots": slots_of[probed["slots"]],
        "tokens_per_pass": probed["tokens_per_pass"],
        "num_threads": probed["num_threads"],
        "num_lanes": probed["num_lanes"],
    }
    settle(broker, **found)
    expected = estimate(trials, max_steps, costs, shape, start_s)
    if budget is not None and budget <= 1.1 * expected.retrain_s:
        raise SpecError(
            f"--time-budget: {budget:.0f} s, but retraining alone takes about {expected.retrain_s:.0f} s; "
            "raise it, or lower --max-steps, --finalists or --seeds"
        )
    settled = {"trials": trials, "max_steps": max_steps, "time_budget_s": budget, "retrain_s": expected.retrain_s}
    settled |= {
        "start_s": start_s,
        "slots": found.pop("num_slots"),
        "expected_s": expected.search_s + expected.retrain_s,
        **found,
    }
    settled |= {name: probed[name] for name in ("padded_share", "embedding_rms")}
    return draft.model_copy(update=settled), expected
