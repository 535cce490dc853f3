"""A search on several nodes: how its trials spread, and what a node that goes or comes does to it."""

import time
from pathlib import Path

import pytest

from adept_tune.tuning.cluster import MAX_GPUS
from tests.cluster.conftest import RemoteNodes
from tests.support.sessions import Session, mlflow_states, said_twice

pytestmark = pytest.mark.slow

LOGICAL_GPUS = "tests.cluster.search_on_logical_gpus"


def search(
    places: Path, folder: Path, nodes: RemoteNodes, *more: str, trials: int, steps: int, module: str = LOGICAL_GPUS
) -> Session:
    """A search on a cluster, two trials a device."""
    arguments = [
        *("--task", "sst2", "--model", str(places / "model"), "--data-dir", str(places / "data")),
        *("--space", str(places / "own.yaml"), "--trials", str(trials), "--max-steps", str(steps)),
        *("--batch-size", "4", "--device", "cpu", "--scheduler", "none", "--sampler", "random"),
        *("--finalists", "1", "--seeds", "2", "--trials-per-gpu", "2", "--address", nodes.address),
        *("--set", "num_threads=1", "--precision", "fp32"),
    ]
    return Session([*arguments, *more], folder, places / "cache", module, **nodes.environment)


def last_steps(found: Session) -> dict[int, int]:
    """Trial to the step of its last report."""
    return {event["trial"]: event["step"] for event in found.events("reported")}


def check_whole(found: Session, trials: int) -> None:
    """Every trial came to its end once, in journal and MLflow."""
    assert said_twice(found.events()) == []
    ended = {event["trial"]: event["state"] for event in found.events("ended")}
    assert ended == dict.fromkeys(range(trials), "FINISHED")
    runs = {"search FINISHED": 1, "trial FINISHED": trials, "retrain FINISHED": 2}
    assert mlflow_states(found.folder / "mlflow.db") == runs


def test_trials_spread_over_gpus_survive_a_lost_node_and_use_one_that_joins(places, tmp_path, with_gpus):
    nodes = with_gpus
    found = search(places, tmp_path / "experiment", nodes, "--set", "max_failures=0", trials=12, steps=1200)
    found.until(lambda: len({event["trial"] for event in found.events("reported")}) == 6)
    assert nodes.host_nodes() == sorted(nodes.ids[name][:12] for name in "abc")
    found.until(lambda: len(found.events("reported")) > 60)

    before = last_steps(found)
    nodes.ask("remove", "b")
    joined = nodes.ask("add", "d", 1, 1)  # at once: a fast machine ends the search before long
    found.until(lambda: len(found.events("trouble")) == 2)
    for event in found.events("trouble"):
        lost, step = event["what"].split("; it goes on from step ")
        assert lost == "its node was lost"
        assert int(step) >= before[event["trial"]] > 0

    found.until(lambda: joined[:12] in nodes.host_nodes())
    assert found.end() == 0, found.output
    check_whole(found, 12)
    deadline = time.monotonic() + 30
    while nodes.host_nodes():
        assert time.monotonic() < deadline, nodes.host_nodes()
        time.sleep(0.2)


def test_a_search_waits_for_the_gpu_that_its_cluster_promises(places, tmp_path, without_gpus, monkeypatch):
    monkeypatch.setenv(MAX_GPUS, "1")
    found = search(places, tmp_path / "experiment", without_gpus, trials=2, steps=400)
    found.until(lambda: "The cluster has no GPU yet" in found.output)
    joined = without_gpus.ask("add", "gpu", 1, 1)
    found.until(lambda: found.events("reported"))
    assert without_gpus.host_nodes() == [joined[:12]]
    assert found.end() == 0, found.output
    assert "2 trials at once" in found.output
    without_gpus.ask("remove", "gpu")


def test_trials_of_cpus_hold_a_share_of_their_node_and_none_waits_for_a_seat(places, tmp_path, without_gpus):
    nodes = without_gpus  # two trials at once on the head, one on the other
    found = search(places, tmp_path / "experiment", nodes, trials=4, steps=1200, module="adept_tune.search")
    found.until(lambda: len({event["trial"] for event in found.events("reported")}) == 3)
    assert nodes.host_nodes() == sorted(node[:12] for node in nodes.ids.values())
    assert "3 trials at once" in found.output
    assert found.end() == 0, found.output
    check_whole(found, 4)


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        ("tests.cluster.search_of_another_version", ["adept_tune 0.1.0, source", "here it is 0.0.9, source 12345678"]),
        ("tests.cluster.search_on_another_ray", ["Ray: 2.60.0", "Ray: 2.59.0"]),
    ],
)
def test_a_cluster_of_another_version_is_refused_with_both_shown(places, tmp_path, without_gpus, module, shown):
    found = search(places, tmp_path / "experiment", without_gpus, trials=1, steps=20, module=module)
    assert found.end() == 2, found.output
    assert all(words in found.output for words in shown), found.output
    assert "Traceback" not in found.output
