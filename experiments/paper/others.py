"""The other tasks: WinoGrande, Yelp-2, SciTail, PAWS and MBPP, every method. Published numbers leave MBPP out."""

import sys

from command import Study, main

TASKS = ("winogrande", "yelp2", "scitail", "paws")

STUDY = Study(
    name="others",
    title="Other tasks",
    about="Search every method on WinoGrande, Yelp-2, SciTail, PAWS and MBPP (which needs --allow-code-execution).",
    tasks=(*TASKS, "mbpp"),
    averages={"others": TASKS},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
