"""`adept_tune.search` whose trials hold shares of GPUs that exist in Ray's accounting alone; hosts work on the CPU."""

import sys

from adept_tune import search
from adept_tune.tuning import search as tuning_search
from adept_tune.tuning.cluster import share_of
from adept_tune.tuning.ray_tune import Share


def share_of_gpu(device: str, slots: int, launchable: int = 0) -> Share:
    """What a trial holds on a machine that has GPUs."""
    return share_of("cuda", slots, launchable)


if __name__ == "__main__":
    tuning_search.share_of = share_of_gpu  # type: ignore[assignment]
    sys.exit(search.main())
