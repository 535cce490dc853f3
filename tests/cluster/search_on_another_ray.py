"""`adept_tune.search` on a Ray that takes itself for an older one."""

import sys

import ray

from adept_tune import search

if __name__ == "__main__":
    ray.__version__ = "2.59.0"
    sys.exit(search.main())
