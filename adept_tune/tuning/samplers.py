"""Who proposes the next point: Optuna's samplers behind ask and tell, or every point of a finite space in turn.

Each proposal comes from a sampler seeded by (search seed, trial number), so it depends on the history alone, and a
history told again gives the same next proposal.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from typing import Any

from adept_tune.tuning.space import Choices, Dimension, Params, Range, Sampler, SearchSpace

STARTUP_TRIALS = 10  # random points before TPE or a Gaussian process models anything; Optuna's default


def derive_seed(*parts: object) -> int:
    """A 32-bit seed from anything that prints the same every time."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "little")


class Proposer(ABC):
    """Proposes points and is told what became of them. Trials are told in the order they ended."""

    @abstractmethod
    def propose(self, trial: int) -> Params | None:
        """The point of a new trial, None where the space is exhausted."""

    @abstractmethod
    def again(self, trial: int, params: Params) -> None:
        """Take note of a proposal made before, when a journal is replayed."""

    def reported(self, trial: int, step: int, value: float) -> None:  # noqa: B027 - optional to a proposer
        """A trial's standing at a step; greater is better."""

    def ended(self, trial: int, value: float | None, pruned: bool) -> None:  # noqa: B027 - optional to a proposer
        """A trial is over: complete with a value, pruned, or (None, False) of no use."""


class OptunaProposer(Proposer):
    """TPE, random search or a Gaussian process.

    Args:
        space: What is searched.
        sampler: ``tpe``, ``random`` or ``gp``.
        seed: The search's.
    """

    def __init__(self, space: SearchSpace, sampler: Sampler, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._seed = seed
        self._sampler = sampler
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
        self._distributions = {name: distribution(dim) for name, dim in space.dimensions.items()}
        self._first = list(space.points)
        self._trials: dict[int, Any] = {}

    def propose(self, trial: int) -> Params:
        """A first point while there are any, else the sampler's."""
        if trial < len(self._first):
            self._study.enqueue_trial(self._first[trial])
        self._study.sampler = self._seeded(trial)
        self._trials[trial] = self._study.ask(self._distributions)
        return dict(self._trials[trial].params)

    def again(self, trial: int, params: Params) -> None:
        """See `Proposer`."""
        self._study.enqueue_trial(params)
        self._trials[trial] = self._study.ask(self._distributions)

    def reported(self, trial: int, step: int, value: float) -> None:
        """See `Proposer`."""
        self._trials[trial].report(value, step)

    def ended(self, trial: int, value: float | None, pruned: bool) -> None:
        """Tell Optuna COMPLETE, PRUNED or FAIL, which it weighs differently."""
        from optuna.trial import TrialState

        if pruned:
            self._study.tell(self._trials[trial], state=TrialState.PRUNED)
        elif value is None:
            self._study.tell(self._trials[trial], state=TrialState.FAIL)
        else:
            self._study.tell(self._trials[trial], value)

    def _seeded(self, trial: int) -> Any:
        import optuna

        seed = derive_seed(self._seed, "sampler", trial)
        if self._sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        if self._sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


class GridProposer(Proposer):
    """Every point of a finite space once, the first points first, the rest in an order drawn from the seed."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        points = space.grid()
        num_first = sum(point in space.points for point in points)
        rest = points[num_first:]
        random.Random(f"{seed}/grid").shuffle(rest)
        self._points = points[:num_first] + rest

    def propose(self, trial: int) -> Params | None:
        """The point with the trial's number."""
        return dict(self._points[trial]) if trial < len(self._points) else None

    def again(self, trial: int, params: Params) -> None:
        """Nothing to note: the order is fixed."""


def make_proposer(space: SearchSpace, sampler: Sampler, seed: int) -> Proposer:
    """The proposer that the command line names.

    Raises:
        SpaceError: The grid of a space that is not finite.
    """
    return GridProposer(space, seed) if sampler == "grid" else OptunaProposer(space, sampler, seed)


def distribution(dimension: Dimension) -> Any:
    """A dimension as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.choices)
    assert isinstance(dimension, Range)
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.integer:
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=dimension.log, step=None if step is None else float(step))
