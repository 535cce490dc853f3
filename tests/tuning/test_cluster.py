"""What a trial holds on clusters of every shape; Ray's view of the nodes is made up."""

import pytest

from adept_tune.errors import SpecError
from adept_tune.tuning import cluster
from adept_tune.tuning.cluster import LOCAL, MAX_GPUS, launchable_gpus, node_cpus, share_of
from adept_tune.tuning.search import Request, _device
from adept_tune.tuning.version import own_version


@pytest.fixture
def nodes(monkeypatch):
    """The nodes that Ray tells of, as (CPUs, GPUs, alive); change the list to change the cluster."""
    there: list[tuple[int, int, bool]] = []

    def told():
        return [{"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus, alive in there]

    def resources():
        return {"GPU": sum(gpus for _, gpus, alive in there if alive)}

    monkeypatch.setattr(cluster.ray, "nodes", told)
    monkeypatch.setattr(cluster.ray, "cluster_resources", resources)
    return there


def test_share_of_cpus_fits_its_node_and_not_the_cluster(nodes):
    nodes += [(8, 0, True), (4, 0, True), (2, 0, True), (64, 0, False)]
    assert node_cpus() == 8
    share = share_of("cpu", 4)
    assert share.num_cpus == 2.0
    assert share.concurrent == 4 + 2 + 1  # smaller nodes take their part


def test_room_follows_nodes_that_come_and_go(nodes):
    nodes += [(4, 0, True)]
    share = share_of("cpu", 4)
    nodes += [(4, 0, True)]
    assert share.room() == 8
    nodes[:] = [(4, 0, False), (2, 0, True)]
    assert share.room() == 2
    assert share.concurrent == 4


def test_a_larger_node_that_joins_takes_no_more_than_its_hosts_slots(nodes):
    nodes += [(4, 0, True)]
    share = share_of("cpu", 4)
    nodes += [(16, 0, True)]
    assert share.room() == 4 + 4


def test_gpus_that_can_be_launched_count_as_there(nodes):
    nodes += [(4, 0, True)]
    share = share_of("cuda", 8, launchable=3)
    assert share.num_gpus == 0.125
    assert share.concurrent == 24
    nodes += [(4, 8, True)]
    assert share.room() == 64


def test_a_cluster_without_limit_has_room_on_the_gpus_it_has(nodes):
    nodes += [(4, 1, True), (4, 1, True)]
    assert share_of("cuda", 8).concurrent == 16


def test_launchable_gpus_are_the_clusters_and_not_this_machines(monkeypatch):
    monkeypatch.setenv(MAX_GPUS, "4")
    assert launchable_gpus("auto") == 4
    assert launchable_gpus(LOCAL) == 0
    monkeypatch.delenv(MAX_GPUS)
    assert launchable_gpus("auto") == 0


@pytest.mark.parametrize(("promised", "device"), [("2", "cuda"), ("0", "cpu")])
def test_device_is_the_gpu_that_the_cluster_can_launch(nodes, monkeypatch, promised, device):
    nodes += [(4, 0, True)]
    monkeypatch.setenv(MAX_GPUS, promised)
    assert _device(Request("cola", address="auto"), lambda: None) == device


@pytest.mark.parametrize("text", ["four", "-1", "1.5"])
def test_launchable_gpus_that_are_no_number_are_told(monkeypatch, text):
    monkeypatch.setenv(MAX_GPUS, text)
    with pytest.raises(SpecError, match=f"{MAX_GPUS}={text}: give the whole number"):
        launchable_gpus("auto")


def test_own_version_is_that_of_the_source():
    assert own_version().startswith("0.1.0, source ")
    assert len(own_version().rpartition(" ")[2]) == 8
    assert own_version() == own_version()
