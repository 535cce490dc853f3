"""How long a search will take, and how many trials of how many steps fit a time budget."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from adept_tune.tuning.rungs import Rule, Scheduler, make_rule
from adept_tune.tuning.spec import DEFAULT_FINALISTS

MARGIN = 0.9  # share of a budget that a plan may fill
FEWEST_STEPS, MOST_STEPS = 20, 30_000  # the published length of most small tasks, where a task says none
FEWEST_TRIALS, MOST_TRIALS = 4, 128


@dataclass(frozen=True)
class Costs:
    """Measured by the probe, in seconds, on all devices together.

    Attributes:
        step_s: One trial's optimizer step in full company.
        evaluation_s: One trial's evaluation.
    """

    step_s: float
    evaluation_s: float


@dataclass(frozen=True)
class Shape:
    """What the cost of a search depends on besides trials and steps; `finalists` are all that are retrained."""

    scheduler: Scheduler
    plateau_steps: int | None
    reduction_factor: float
    finalists: int = DEFAULT_FINALISTS
    seeds: int = 3
    seed: int = 0

    def rule(self, max_steps: int) -> Rule:
        """A fresh rule for trials of that length."""
        return make_rule(self.scheduler, max_steps, self.plateau_steps, self.reduction_factor, self.seed)


@dataclass(frozen=True)
class Estimate:
    """Expected wall time in seconds.

    Attributes:
        start_s: Of what comes before, which has been measured: processes, imports, MLflow's database, the probe.
        search_s: Of the search phase.
        retrain_s: Of retraining and testing.
    """

    start_s: float
    search_s: float
    retrain_s: float

    @property
    def total_s(self) -> float:
        """Of everything."""
        return self.start_s + self.search_s + self.retrain_s


def estimate(trials: int, max_steps: int, costs: Costs, shape: Shape, start_s: float = 0.0) -> Estimate:
    """Expected cost of a search; what stopping saves is simulated with the rule itself on random standings."""
    steps, evaluations = expected_work(trials, max_steps, shape)
    runs = min(shape.finalists, trials) * shape.seeds
    return Estimate(
        start_s,
        steps * costs.step_s + evaluations * costs.evaluation_s,
        runs * (max_steps * costs.step_s + costs.evaluation_s) + shape.seeds * costs.evaluation_s,
    )


@lru_cache(maxsize=512)
def expected_work(trials: int, max_steps: int, shape: Shape, repeats: int = 8) -> tuple[float, float]:
    """Mean optimizer steps and evaluations of a whole search phase, all trials together."""
    steps = evaluations = 0
    for repeat in range(repeats):
        rule, draw = shape.rule(max_steps), random.Random(repeat)
        for trial in range(trials):
            quality = draw.random()
            reached = max_steps
            for step in rule.steps(trial):
                evaluations += 1
                if rule.decide(trial, step, quality).stop:
                    reached = step
                    break
            else:
                evaluations += 1
            steps += reached
    return steps / repeats, evaluations / repeats


def fit(
    budget_s: float,
    start_s: float,
    costs: Costs,
    shape: Shape,
    trials: int | None,
    max_steps: int | None,
    default_trials: int,
    published_steps: int | None,
) -> tuple[int, int]:
    """Trials and steps that fill a time budget; what is given stays.

    Steps come first, up to the published length; what is then left of the budget goes to more trials. Where not even
    the fewest steps fit, there are fewer trials.
    """

    def fits(trials: int, max_steps: int) -> bool:
        return estimate(trials, max_steps, costs, shape, start_s).total_s <= MARGIN * budget_s

    chosen = trials or default_trials
    if max_steps is None:
        longest = published_steps or MOST_STEPS
        if trials is None and not fits(chosen, FEWEST_STEPS):
            chosen = _largest(FEWEST_TRIALS, chosen, lambda fewer: fits(fewer, FEWEST_STEPS))
        max_steps = _largest(FEWEST_STEPS, longest, lambda steps: fits(chosen, steps))
        max_steps = round_down(max_steps)
        if trials is None and max_steps == round_down(longest):
            chosen = _largest(chosen, MOST_TRIALS, lambda more: fits(more, longest))
    elif trials is None:
        chosen = _largest(FEWEST_TRIALS, MOST_TRIALS, lambda more: fits(more, max_steps))
    return chosen, max_steps


def round_down(steps: int) -> int:
    """Two leading digits, for people."""
    unit = int(10 ** max(0, len(str(steps)) - 2))
    return steps // unit * unit


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Largest whole number in the range that fits; the lowest where none does."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
