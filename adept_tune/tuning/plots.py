"""The pictures of a report. Optuna draws what it has a plot for; the rest is drawn here, all with matplotlib."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adept_tune.tasks import get_task
from adept_tune.tuning.record import Record, TrialStory
from adept_tune.tuning.samplers import distribution
from adept_tune.tuning.space import Range, SearchSpace, SpaceFile, resolve_space

COLOURS = {
    "FINISHED": "#1b7837",
    "PRUNED": "#999999",
    "DIVERGED": "#d6604d",
    "FAILED": "#762a83",
    "INTERRUPTED": "#e08214",
    "RUNNING": "#4393c3",
}
DPI = 110


def draw_all(record: Record, folder: Path) -> dict[str, Path]:
    """Draw every picture the record has something for.

    Args:
        record: The search.
        folder: Where to write PNGs.

    Returns:
        Title to file, in the order of the report.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pictures: list[tuple[str, str, Callable[[Record], Any]]] = [
        ("Learning curves", "curves", _curves),
        ("Finalists over seeds", "finalists", _finalists),
        ("Score against each setting", "settings", _settings),
        ("Configurations", "parallel", _parallel),
        ("Which setting mattered", "importance", _importance),
        ("Where the time went", "time", _time),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for title, name, draw in pictures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's plots are "experimental", and small searches have few points
            figure = draw(record)
        if figure is not None:
            drawn[title] = folder / f"{name}.png"
            figure.savefig(drawn[title], dpi=DPI, bbox_inches="tight")
            plt.close(figure)
    return drawn


def space_of(record: Record) -> SearchSpace:
    """The search space of an experiment."""
    spec, task = record.spec, get_task(record.spec.task)
    file = SpaceFile.model_validate(spec.space)
    return resolve_space(file, spec.backbone["d_model"], task.max_source_length, spec.fixed)


def _curves(record: Record) -> Any:
    import matplotlib.pyplot as plt

    from adept_tune.tuning.experiment import shape_of

    task = get_task(record.spec.task)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    seen: set[str] = set()
    for story in record.trials.values():
        colour, label = COLOURS[story.state], story.state if story.state not in seen else None
        seen.add(story.state)
        left.plot(*_curve(story.losses), color=colour, alpha=0.7, label=label)
        right.plot(*_curve(story.scores), color=colour, alpha=0.7, marker="o", markersize=3)
    for axis in (left, right):
        for step in shape_of(record.spec, task).rule(record.spec.max_steps).steps(0):
            axis.axvline(step, color="black", linewidth=0.6, linestyle=":")
        axis.set_xlabel("step (dotted: rungs)")
    left.set_ylabel("training loss")
    right.set_ylabel(f"validation {task.metric}")
    if seen:
        left.legend(fontsize=8)
    return figure


def _finalists(record: Record) -> Any:
    import matplotlib.pyplot as plt

    spreads = record.finalists()
    if not spreads:
        return None
    figure, axis = plt.subplots(figsize=(7, 0.6 * len(spreads) + 1.5))
    winner = record.winner["trial"] if record.winner else None
    for row, (number, spread) in enumerate(spreads.items()):
        seeds = [story.score for (n, _), story in record.reruns.items() if n == number and story.score is not None]
        axis.plot(seeds, [row] * len(seeds), "o", color="#bbbbbb", markersize=5)
        axis.errorbar(
            spread.mean, row, xerr=spread.se, fmt="D", color="#1b7837" if number == winner else "#4393c3", capsize=4
        )
    axis.set_yticks(range(len(spreads)), [f"trial {n}{' (winner)' if n == winner else ''}" for n in spreads])
    axis.invert_yaxis()
    axis.set_xlabel(f"validation {get_task(record.spec.task).metric}: seeds, mean and standard error")
    return figure


def _settings(record: Record) -> Any:
    import matplotlib.pyplot as plt

    stories = _scored(record)
    names = list(space_of(record).dimensions)
    if not stories:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        dimension = space_of(record).dimensions[name]
        for story in stories:
            value = story.params[name]
            x = value if isinstance(dimension, Range) else str(value)
            axis.scatter(x, story.score, color=COLOURS[story.state], s=28, alpha=0.8)
        if isinstance(dimension, Range) and dimension.log:
            axis.set_xscale("log")
        axis.set_xlabel(name)
    axes[0][0].set_ylabel(f"last validation {get_task(record.spec.task).metric}")
    return figure


def _parallel(record: Record) -> Any:
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    study = _optuna_study(record)
    return plot_parallel_coordinate(study).figure if len(study.trials) > 1 else None


def _importance(record: Record) -> Any:
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization.matplotlib import plot_param_importances

    study = _optuna_study(record)
    if len({trial.value for trial in study.trials}) < 3:  # nothing to attribute
        return None
    return plot_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)).figure


def _time(record: Record) -> Any:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 1.8))
    names, seconds = list(record.parts_s), list(record.parts_s.values())
    axis.barh(names, seconds, color="#4393c3")
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    return figure


def _optuna_study(record: Record) -> Any:
    """Trials that have a score, as Optuna's plots want them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = space_of(record)
    distributions = {
        # A first point may lie between two steps, where Optuna takes none.
        name: distribution(each.model_copy(update={"step": None}) if isinstance(each, Range) else each)
        for name, each in space.dimensions.items()
    }
    study = optuna.create_study(direction="maximize")
    for story in _scored(record):
        params = {name: story.params[name] for name in distributions}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=story.score))
    return study


def _scored(record: Record) -> list[TrialStory]:
    return [story for story in record.trials.values() if story.score is not None]


def _curve(points: dict[int, float]) -> tuple[Sequence[int], Sequence[float]]:
    steps = sorted(points)
    return steps, [points[step] for step in steps]
