"""What the console says of a plan and of a result, as lines of text."""

from collections.abc import Iterator

from adept_tune.tuning.experiment import shape_of
from adept_tune.tuning.materials import Materials
from adept_tune.tuning.plan import Estimate
from adept_tune.tuning.spec import SearchSpec


def plan_lines(spec: SearchSpec, materials: Materials, expected: Estimate, concurrent: int) -> Iterator[str]:
    """The resolved plan and its cost.

    Args:
        spec: What will be done.
        materials: What it works on.
        expected: How long it will take.
        concurrent: Trials at once.
    """
    task, space, data = materials.task, materials.space, materials.data
    rows = f"{len(data.train)} / {len(data.validation)} / {len(data.test)} rows"
    demonstration = " (a demonstration)" if task.demonstration else ""
    protocol = ", with the faults of the published code" if task.protocol == "paper" else ""
    answers = "open answers" if task.is_open else f"labels {spec.labels}"
    yield f"Task      {task.name}{demonstration}: {task.metric}, {answers}, {rows}{protocol}"
    scale = f", embeddings of RMS {spec.embedding_rms:g}" if spec.embedding_rms is not None else ""
    yield f"Model     {materials.info.name} on {spec.device}, {spec.precision}, d={materials.info.d_model}{scale}"
    counts = [space.num_parameters(point) for point in space.corners()]
    yield f"Method    {spec.method}, {min(counts):,} to {max(counts):,} trained parameters"
    for name, dimension in space.dimensions.items():
        yield f"          {name} in {dimension}"
    if space.budget is not None:
        yield f"          at most {space.budget:,} parameters: the width follows from the prompt length"
    rungs = ", ".join(map(str, shape_of(spec, task).rule(spec.max_steps).steps(0))) or "none"
    fused = "all tokens" if spec.tokens_per_pass is None else f"at most {spec.tokens_per_pass:,} tokens"
    beside = f", {spec.num_lanes} passes side by side" if spec.num_lanes > 1 else ""
    yield f"Device    {concurrent} trials at once, {fused} a pass, {spec.padded_share or 0:.0%} of them padding{beside}"
    yield (
        f"Search    {spec.trials} trials of up to {spec.max_steps} steps of {spec.batch_size} rows, "
        f"{spec.sampler} and {spec.scheduler}, rungs at {rungs}"
    )
    beside = ", and the space's first point where it is none of them" if space.points else ""
    yield f"Retrain   {spec.finalists} finalists over {spec.seeds} seeds{beside}"
    budget = f" of {duration(spec.time_budget_s)} allowed" if spec.time_budget_s else ""
    yield (
        f"Time      about {duration(expected.total_s)}{budget}: {duration(expected.start_s)} until here, "
        f"search {duration(expected.search_s)}, retrain and test {duration(expected.retrain_s)}"
    )
    sources = [split.sources.lengths for split in (data.train, data.validation, data.test)]
    if full := sum(int((lengths >= data.max_source_length).sum()) for lengths in sources):
        yield f"Note      {full:,} sources have {data.max_source_length} tokens or more; what is beyond is not read"
    published, plateau = task.published_steps, task.plateau_steps
    if published and spec.max_steps < published:
        yield f"Note      published runs of {task.name} take {published:,} steps; these end at {spec.max_steps:,}"
    if plateau and spec.max_steps <= plateau:
        yield (
            f"Warning   published runs of {task.name} leave chance after about {plateau:,} steps; "
            f"{spec.max_steps:,} steps may end before that: raise --max-steps or --time-budget"
        )
    yield ""


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
