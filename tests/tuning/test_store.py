"""Where states are kept: the same on a disk and behind any fsspec URI."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from adept_tune.errors import SpecError, StateError, StorageError
from adept_tune.tuning.store import KEPT_STATES, Store


class StoreContract:
    """What holds wherever states are kept."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        raise NotImplementedError

    @pytest.fixture
    def store(self, root: str) -> Store:
        return Store(root)

    def files(self, root: str) -> list[str]:
        """What lies there, by its path below the root."""
        system, path = fsspec.core.url_to_fs(root)
        return sorted(str(name)[len(path) :].lstrip("/") for name in system.find(path))

    def test_a_state_comes_back_with_its_place(self, store: Store, root: str) -> None:
        blob = bytes(range(256)) * 100
        store.write("trial-0001", 40, blob)
        found, where = store.read("trial-0001", 40)
        assert found == blob
        assert where.endswith("trial-0001/step-00000040.safetensors")

    def test_an_empty_state_comes_back(self, store: Store) -> None:
        store.write("trial-0001", 1, b"")
        assert store.read("trial-0001", 1)[0] == b""

    def test_another_store_at_the_same_root_reads_it(self, store: Store, root: str) -> None:
        store.write("trial-0001", 40, b"state")
        assert Store(root).read("trial-0001", 40)[0] == b"state"
        assert Store(root).steps("trial-0001") == [40]

    def test_a_state_written_again_is_replaced(self, store: Store) -> None:
        store.write("trial-0001", 40, b"old")
        store.write("trial-0001", 40, b"new")
        assert store.read("trial-0001", 40)[0] == b"new"
        assert store.steps("trial-0001") == [40]

    def test_a_later_state_gives_way_before_an_earlier_one(self, store: Store) -> None:
        for step in (10, 20, 15):
            store.write("trial-0000", step, b"state")
        assert store.steps("trial-0000") == [10, 15]

    def test_the_last_two_states_of_a_job_are_kept(self, store: Store) -> None:
        assert KEPT_STATES == 2
        for step in (5, 10, 100, 1000):
            store.write("trial-0001", step, str(step).encode())
            store.write("trial-0002", 7, b"other")
        assert store.steps("trial-0001") == [100, 1000]
        assert [store.read("trial-0001", step)[0] for step in (100, 1000)] == [b"100", b"1000"]
        assert store.steps("trial-0002") == [7]

    def test_a_missing_state_is_told_with_the_steps_there_are(self, store: Store) -> None:
        for step in (5, 10):
            store.write("trial-0001", step, b"state")
        with pytest.raises(
            StateError, match=r"step-00000007\.safetensors: no such state; trial-0001 has steps \[5, 10\]"
        ):
            store.read("trial-0001", 7)

    def test_a_job_without_states_has_no_steps(self, store: Store) -> None:
        assert store.steps("trial-0001") == []
        with pytest.raises(StateError, match=r"no such state; trial-0001 has steps \[\]"):
            store.read("trial-0001", 7)

    def test_nothing_but_states_is_left(self, store: Store, root: str) -> None:
        store.write("trial-0001", 5, b"state")
        assert self.files(root) == ["trial-0001/step-00000005.safetensors"]

    def test_a_file_left_half_written_is_no_state(self, store: Store, root: str) -> None:
        store.write("trial-0001", 5, b"state")
        system, path = fsspec.core.url_to_fs(root)
        system.pipe_file(f"{path}/trial-0001/step-00000010.safetensors.part", b"half")
        assert store.steps("trial-0001") == [5]
        store.write("trial-0001", 10, b"whole")
        assert store.read("trial-0001", 10)[0] == b"whole"
        assert store.steps("trial-0001") == [5, 10]

    def test_a_write_that_fails_before_the_rename_leaves_the_old_states(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step in (5, 10):
            store.write("trial-0001", step, b"old")

        def lost(*_: object, **__: object) -> None:
            raise OSError("the connection was lost")

        monkeypatch.setattr(store._files, "mv", lost)
        for step in (10, 15):
            with pytest.raises(StorageError, match=r"cannot be written \(the connection was lost\)"):
                store.write("trial-0001", step, b"new")
        assert store.steps("trial-0001") == [5, 10]
        assert store.read("trial-0001", 10)[0] == b"old"

    def test_keep_only_drops_other_jobs(self, store: Store, root: str) -> None:
        for job in ("trial-0001", "trial-0001-seed-1", "trial-0011", "trial-0002"):
            store.write(job, 5, b"state")
        store.keep_only({"trial-0001", "trial-0001-seed-1", "trial-0099"})
        assert self.files(root) == [
            "trial-0001-seed-1/step-00000005.safetensors",
            "trial-0001/step-00000005.safetensors",
        ]

    def test_what_cannot_be_removed_stays_and_stops_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: object, **__: object) -> None:
            raise PermissionError("not yours")

        store.write("trial-0001", 5, b"state")
        monkeypatch.setattr(store._files, "rm", refused)
        store.drop("trial-0001")
        store.keep_only(set())
        assert store.steps("trial-0001") == [5]

    def test_a_check_writes_and_leaves_nothing(self, store: Store, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        store.check()
        assert self.files(root) == []

        def refused(*_: object, **__: object) -> None:
            raise PermissionError("not yours")

        monkeypatch.setattr(store._files, "pipe_file", refused)
        with pytest.raises(SpecError, match=r"cannot write there \(not yours\)"):
            store.check()

    def test_keep_only_of_an_empty_store_does_nothing(self, store: Store) -> None:
        store.keep_only({"trial-0001"})
        assert store.steps("trial-0001") == []


class TestFolder(StoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path / "states")


class TestFolderWithAnOddName(StoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path / "süß [a] {b} 50%" / "states")


class TestFileUri(StoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/states"


class TestMemoryUri(StoreContract):
    @pytest.fixture
    def root(self) -> Iterator[str]:
        root = f"memory://adept-tune-{uuid.uuid4().hex}/states"
        yield root
        system, path = fsspec.core.url_to_fs(root)
        if system.exists(path):
            system.rm(path, recursive=True)


@pytest.mark.parametrize("root", ["nosuch://bucket/path", "nosuch://"])
def test_a_root_of_an_unknown_kind_is_refused(root):
    with pytest.raises(SpecError, match=f"--storage {root}: "):
        Store(root)


def test_a_store_touches_nothing_before_the_first_write(tmp_path):
    Store(str(tmp_path / "states"))
    assert list(tmp_path.iterdir()) == []
