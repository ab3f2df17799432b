"""Which fragments of a W&B run are kept, and what is logged again."""

from pathlib import Path

import pytest

from fewstep.tracking.names import IMAGES, LOSS
from fewstep.tracking.wandb_fragments import Mark, fragments_of, last_logged, remove_repeated, write_mark

HISTORY = [{IMAGES: 100.0 * n, LOSS: 1.0} for n in range(1, 9)]
ID = "0123456789ab"


def make(folder: Path, kind: str, second: int, mark: Mark | None, *, synced: bool = False) -> Path:
    """A fragment as a process leaves it."""
    fragment = folder / "wandb" / f"{kind}-20260102_0304{second:02}-{ID}"
    fragment.mkdir(parents=True)
    (fragment / f"run-{ID}.wandb").write_bytes(b":W&B")
    if mark is not None:
        write_mark(fragment, mark)
    if synced:
        (fragment / f"run-{ID}.wandb.synced").touch()
    return fragment


def resumed(folder: Path) -> int:
    """The last step that counts as logged by a process that starts offline."""
    found = fragments_of(folder, ID)
    last = last_logged(found, lambda: HISTORY)
    remove_repeated(found, online=False)
    return last


def test_a_new_run_has_nothing(tmp_path):
    assert resumed(tmp_path) == -1


def test_complete_fragments_are_kept_and_killed_ones_made_again(tmp_path):
    kept = make(tmp_path, "offline-run", 1, Mark(300, complete=True))
    killed = make(tmp_path, "offline-run", 2, Mark(300, complete=False))
    assert resumed(tmp_path) == 300
    assert (kept.exists(), killed.exists()) == (True, False)


def test_a_fragment_of_another_program_is_made_again(tmp_path):
    fragment = make(tmp_path, "offline-run", 1, None)
    assert resumed(tmp_path) == -1
    assert not fragment.exists()


@pytest.mark.parametrize(("kind", "synced"), [("run", False), ("offline-run", True)])
def test_offline_all_of_the_history_counts_as_uploaded_by_a_killed_process(tmp_path, kind, synced):
    """And only what it had logged: the rows of an offline process that was killed after it are logged again."""
    uploaded = make(tmp_path, kind, 1, Mark(-1, complete=False), synced=synced)
    assert resumed(tmp_path) == 800
    killed = make(tmp_path, "offline-run", 2, Mark(500, complete=False))
    assert resumed(tmp_path) == 500
    assert (uploaded.exists(), killed.exists()) == (True, False)


def test_of_a_run_now_online_no_fragment_is_left_to_upload(tmp_path):
    online = make(tmp_path, "run", 1, Mark(-1, complete=False))
    synced = make(tmp_path, "offline-run", 2, Mark(200, complete=True), synced=True)
    waiting = make(tmp_path, "offline-run", 3, Mark(300, complete=True))
    remove_repeated(fragments_of(tmp_path, ID), online=True)
    assert (online.exists(), synced.exists(), waiting.exists()) == (True, True, False)


def test_fragments_are_in_the_order_of_their_time(tmp_path):
    second, first = (make(tmp_path, kind, at, None) for kind, at in (("offline-run", 2), ("run", 1)))
    assert fragments_of(tmp_path, ID) == [first, second]
    assert fragments_of(tmp_path, "another") == []
