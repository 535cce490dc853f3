"""MRQA: four tasks of reading comprehension, every method; F1 against all right answers."""

import sys

from command import Study, main

TASKS = ("nq", "hotpotqa", "searchqa", "newsqa")

STUDY = Study(
    name="mrqa",
    title="MRQA",
    about="Search every method on the tasks of MRQA, and make one table of it.",
    tasks=TASKS,
    averages={"MRQA": TASKS},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
