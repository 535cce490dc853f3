"""The columns of MLflow's table of runs, which by itself shows no metric, param or tag.

MLflow keeps named views of that table in tags of the experiment, and applies the one that an address names.
"""

import json

from adept_tune.tracking.base import SearchInfo

VIEW_TAG = "mlflow.sharedViewState."
RATE = "_lr"
RESULTS = ("tags.`end_state`", "tags.`winner_trial`", "metrics.`score`", "metrics.`validation_loss`", "metrics.`step`")
WIDTHS = {
    "attributes.`Run Name`": 215,
    "runDateAndNestInfo": 130,
    "duration": 80,
    "tags.`end_state`": 105,
    "attributes.`Description`": 380,
}
"""Pixels of columns whose cells are wider than their headings; the first three are there whatever a view says."""


def view_tag(info: SearchInfo) -> tuple[str, str]:
    """Name and value of the experiment's tag that holds the view of a search's trials; its id is the method.

    Beside end, winner, score, loss and step stand the searched settings and the number of parameters trained; the
    description, which on the search run tells the winner in words, comes last. Searches that share an experiment share
    a method's view.

    Source: `savedViewEnvelope.ts` and `ExperimentPageUIState.tsx` of MLflow 3.17.
    """
    rates = [name for name in info.columns if name.endswith(RATE)]
    sizes = [name for name in info.columns if name not in rates]
    settings = [f"params.`{name}`" for name in (*sizes, "num_parameters", *rates)]
    chosen = [*RESULTS, *settings, "attributes.`Description`"]
    order = ["attributes.`Run Name`", "runDateAndNestInfo", *chosen, "duration"]
    state = {
        "selectedColumns": chosen,
        "columnOrder": order,
        "columnWidths": {column: WIDTHS.get(column) or _width(column) for column in order},
    }
    view = {"name": f"{info.method} trials", "createdAt": 0, "state": json.dumps(state)}
    return VIEW_TAG + info.method, json.dumps(view)


def page_of(experiment_id: str, info: SearchInfo) -> str:
    """Address of that view, relative to the server's. Any other way in leads first to pages about traces of chats."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={info.method}"


def _width(column: str) -> int:
    """Pixels for the heading of a metric, param or tag, or for a number of five digits; a rate is never cut off.

    Without its exponent 5.0592e-05 would read as 5.0592.
    """
    name = column.split("`")[1]
    return 170 if name.endswith(RATE) else max(75, 30 + 6 * len(name))
