"""GLUE and SuperGLUE: 14 tasks, every method. Published numbers leave ReCoRD out, and so does the average."""

import sys

from command import Study, main

GLUE = ("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola")
SUPER_GLUE = ("multirc", "boolq", "wic", "wsc", "cb")

STUDY = Study(
    name="glue_superglue",
    title="GLUE and SuperGLUE",
    about="Search every method on the tasks of GLUE and SuperGLUE, and make one table of it.",
    tasks=(*GLUE, *SUPER_GLUE, "record"),
    averages={"GLUE": GLUE, "SuperGLUE": SUPER_GLUE},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
