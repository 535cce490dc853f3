"""`adept_tune.search` that takes itself for an older one."""

import sys

from adept_tune import search
from adept_tune.tuning import cluster

if __name__ == "__main__":
    cluster.own_version = lambda: "0.0.9, source 12345678"
    sys.exit(search.main())
