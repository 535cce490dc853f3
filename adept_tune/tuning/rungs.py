"""Which trials go on: stopping rules that act on a trial's standing at fixed steps, and know chance plateaus.

Small tasks sit at chance for thousands of steps and then jump, and the loss moves before the metric does. So a
trial's standing is its score once that is distinguishable from chance, and before that its validation loss, below
every score above chance. No rung lies where the task is known to be still on its plateau, unless the step budget is
too short for a rung after it.
"""

import random
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import median
from typing import Literal

from adept_tune.errors import SpecError

CLEAR_OF_CHANCE = 2.0  # standard errors


def standing(score: float, loss: float, chance: float, chance_error: float, maximize: bool) -> float:
    """One number to rank trials by; greater is better.

    Args:
        score: The metric on the validation half.
        loss: Validation loss, at least 0.
        chance: The metric of the best constant answer.
        chance_error: Standard error of the metric at chance.
        maximize: Whether a greater metric is better.

    Returns:
        The score (negated where less is better) where it is clear of chance; else the chance level less the loss;
        minus infinity where loss or score is not finite.
    """
    if not (isfinite(score) and isfinite(loss)):
        return -inf
    sign = 1.0 if maximize else -1.0
    if sign * (score - chance) > CLEAR_OF_CHANCE * chance_error:
        return sign * score
    return sign * chance - loss


def rung_steps(max_steps: int, plateau_steps: int | None, reduction_factor: float, most: int = 4) -> list[int]:
    """Steps at which trials are compared before the last, ascending.

    Geometric from `max_steps` down, none below the plateau. Where the plateau is not shorter than a reduction allows,
    the step budget forces it: one rung at `max_steps / reduction_factor`.
    """
    steps = [round(max_steps / reduction_factor**k) for k in range(1, most + 1)]
    fitting = sorted({step for step in steps if step >= max(plateau_steps or 1, 1) and step < max_steps})
    if plateau_steps is None:  # nothing known: a ninth of the way is as early as the published curves tell anything
        fitting = [step for step in fitting if step >= max_steps / reduction_factor**2 - 1]
    return fitting or [step for step in steps[:1] if 1 <= step < max_steps]


@dataclass(frozen=True)
class Decision:
    """What a rule says of a trial at a step.

    Attributes:
        stop: Whether the trial ends here.
        rung: Index of the rung, from 0; None where the rule has none.
        reason: For people.
    """

    stop: bool
    rung: int | None
    reason: str


class Rule(ABC):
    """A stopping rule, fed with every standing at a deciding step, in the order they come in."""

    @abstractmethod
    def steps(self, trial: int) -> Sequence[int]:
        """Steps at which a trial is evaluated for this rule, ascending, the last step excluded."""

    @abstractmethod
    def decide(self, trial: int, step: int, value: float) -> Decision:
        """Record a standing and say whether the trial goes on. A standing that is not finite never goes on."""

    def table(self) -> Mapping[int, Sequence[float]]:
        """Standings recorded at each rung step, best first; empty for a rule without rungs."""
        return {}


@dataclass
class Asha(Rule):
    """Asynchronous successive halving, the stopping kind.

    A trial goes on from a rung when it is in the top 1/reduction_factor of those recorded there before it.

    Source: Li et al., MLSys 2020; the cut-off is that of Ray Tune's AsyncHyperBandScheduler.
    """

    rungs: Sequence[int]
    reduction_factor: float = 3.0
    recorded: dict[int, list[float]] = field(default_factory=dict)

    def steps(self, trial: int) -> Sequence[int]:
        """The rungs."""
        return self.rungs

    def decide(self, trial: int, step: int, value: float) -> Decision:
        """See `Rule`."""
        if step not in self.rungs:
            return Decision(not isfinite(value), None, "not a rung")
        rung = list(self.rungs).index(step)
        if not isfinite(value):
            return Decision(True, rung, "no finite loss")
        before = self.recorded.setdefault(step, [])
        cut_off = _quantile(before, 1 - 1 / self.reduction_factor) if before else -inf
        num_before = len(before)
        insort(before, value)
        if value < cut_off:
            return Decision(True, rung, f"{value:.4f} is below the cut-off {cut_off:.4f} of {num_before} before it")
        return Decision(False, rung, f"{value:.4f} reaches the cut-off {cut_off:.4f} of {num_before} before it")

    def table(self) -> Mapping[int, Sequence[float]]:
        """See `Rule`."""
        return {step: self.recorded.get(step, [])[::-1] for step in self.rungs}


@dataclass
class Hyperband(Rule):
    """ASHA over several brackets; a trial's bracket is drawn from the search seed and its number.

    Bracket s leaves out the first s rungs. Brackets are drawn in proportion to the number of trials that
    Hyperband (Li et al., JMLR 2018) starts in each.
    """

    rungs: Sequence[int]
    seed: int
    reduction_factor: float = 3.0

    def __post_init__(self) -> None:
        """Make a bracket for each number of rungs left, down to one rung."""
        num = len(self.rungs)
        self.brackets = [Asha(self.rungs[s:], self.reduction_factor) for s in range(max(num, 1))]
        self._weights = [
            (num + 1) / (num - s + 1) * self.reduction_factor ** (num - s) for s in range(len(self.brackets))
        ]

    def bracket(self, trial: int) -> int:
        """Index of a trial's bracket."""
        draw = random.Random(f"{self.seed}/{trial}")
        return draw.choices(range(len(self.brackets)), self._weights)[0]

    def steps(self, trial: int) -> Sequence[int]:
        """The rungs of the trial's bracket."""
        return self.brackets[self.bracket(trial)].rungs

    def decide(self, trial: int, step: int, value: float) -> Decision:
        """See `Rule`."""
        return self.brackets[self.bracket(trial)].decide(trial, step, value)

    def table(self) -> Mapping[int, Sequence[float]]:
        """All brackets together."""
        merged: dict[int, list[float]] = {step: [] for step in self.rungs}
        for bracket in self.brackets:
            for step, values in bracket.table().items():
                merged[step].extend(values)
        return {step: sorted(values, reverse=True) for step, values in merged.items()}


@dataclass
class Median(Rule):
    """Stop a trial whose best standing is below the median of the others' running means up to that step.

    Source: Golovin et al., KDD 2017 (Vizier), section 3.2.2.
    """

    points: Sequence[int]
    startup_trials: int = 3
    history: dict[int, dict[int, float]] = field(default_factory=dict)

    def steps(self, trial: int) -> Sequence[int]:
        """The points of comparison."""
        return self.points

    def decide(self, trial: int, step: int, value: float) -> Decision:
        """See `Rule`."""
        if not isfinite(value):
            return Decision(True, None, "no finite loss")
        self.history.setdefault(trial, {})[step] = value
        means = []
        for other, curve in self.history.items():
            if other != trial and max(curve) >= step:
                values = [v for s, v in curve.items() if s <= step]
                if values:
                    means.append(sum(values) / len(values))
        best = max(v for s, v in self.history[trial].items() if s <= step)
        if len(means) < self.startup_trials:
            return Decision(False, None, f"only {len(means)} others to compare with")
        middle = median(means)
        word = "below" if best < middle else "not below"
        return Decision(
            best < middle, None, f"best {best:.4f} is {word} the median {middle:.4f} of {len(means)} others"
        )


@dataclass
class NeverStop(Rule):
    """Every trial runs to its end, unless its loss is not finite."""

    points: Sequence[int]

    def steps(self, trial: int) -> Sequence[int]:
        """Where the curve is looked at."""
        return self.points

    def decide(self, trial: int, step: int, value: float) -> Decision:
        """See `Rule`."""
        return Decision(not isfinite(value), None, "runs to its end" if isfinite(value) else "no finite loss")


Scheduler = Literal["asha", "hyperband", "median", "none"]


def make_rule(
    scheduler: Scheduler, max_steps: int, plateau_steps: int | None, reduction_factor: float, seed: int
) -> Rule:
    """The rule that the command line names.

    Raises:
        SpecError: The reduction factor does not reduce.
    """
    if not reduction_factor > 1:
        raise SpecError(f"reduction_factor={reduction_factor}: must be greater than 1, usually 2 to 4")
    rungs = rung_steps(max_steps, plateau_steps, reduction_factor)
    if scheduler == "asha":
        return Asha(rungs, reduction_factor)
    if scheduler == "hyperband":
        return Hyperband(rungs, seed, reduction_factor)
    eighths = sorted({max_steps * k // 8 for k in range(1, 8)})
    points = [p for p in eighths if p >= min(plateau_steps or 0, max_steps // 2) and p > 0]
    return Median(points) if scheduler == "median" else NeverStop(points[1::2])


def _quantile(ascending: Sequence[float], share: float) -> float:
    """Linear-interpolated quantile of sorted values, as numpy's default."""
    position = share * (len(ascending) - 1)
    low = int(position)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (position - low)
