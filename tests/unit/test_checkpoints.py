"""A run's progress: all of it comes back, from this round or the one before, and never damaged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import RunError
from common.weights import digest
from server.checkpoints import Progress, load_progress, save_progress
from tests.unit import federation as fed

KEY = {"study": "abc", "arm": "federated", "repeat": 0, "sites": ["site-1", "site-2"]}
ROOT = Path(__file__).resolve().parents[2]


def progress(round_: int = 3) -> Progress:
    return Progress(
        round=round_,
        weights=fed.weights(round_),
        strategy={"m_t/scale": np.array(0.25, np.float32), "own/count": np.array(7), "v_t/x": np.ones((2, 0))},
        kept=fed.weights(round_ + 1),
        validation={"loss": np.array([1.5]), "low_at": np.arange(4)},
        facts={"norm_cap": 1 / 3, "best_score": None, "stopped_early": False},
        history=[{"round": n, "val_auc": 0.1 * n, "sites": {"site-1": {"status": "é\u2028"}}} for n in range(round_)],
        done=True,
    )


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "state" / "federated" / "checkpoint.safetensors"
    saved = progress()
    save_progress(path, saved, key=KEY)
    found = load_progress(path, key=KEY)
    assert found is not None
    assert (found.round, found.facts, found.history, found.done) == (3, saved.facts, saved.history, True)
    for group in ("weights", "strategy", "kept", "validation"):
        ours, theirs = getattr(saved, group), getattr(found, group)
        assert set(ours) == set(theirs)
        assert digest(ours) == digest(theirs)
        for name, value in ours.items():
            assert theirs[name].shape == value.shape  # numbers without a dimension stay so
            assert theirs[name].dtype == value.dtype
    assert list(path.parent.iterdir()) == [path]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_progress(tmp_path / "none" / "checkpoint.safetensors", key=KEY) is None


def test_memory_orders_and_read_only_arrays_are_saved_as_they_read(tmp_path: Path) -> None:
    path = tmp_path / "c"
    square = np.arange(6, dtype=np.float32).reshape(2, 3)
    square.flags.writeable = False
    save_progress(path, Progress(weights={"t": square.T, "s": square}), key=KEY)
    found = load_progress(path, key=KEY)
    assert found is not None
    np.testing.assert_array_equal(found.weights["t"], square.T)
    np.testing.assert_array_equal(found.weights["s"], square)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "other"}, r"belongs to another study; resume with"),
        ({"arm": "pooled", "repeat": 1}, r"belongs to another arm and repeat"),
        ({"sites": ["site-1"]}, r"trained by other sites \(site-2 missing\); bring the same sites back"),
        ({"sites": ["site-1", "site-2", "site-3"]}, r"trained by other sites \(others came in\)"),
        ({"study": "other", "sites": []}, r"belongs to another sites and study"),
    ],
)
def test_another_works_checkpoint_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_progress(path, progress(), key=KEY)
    with pytest.raises(RunError, match=message) as caught:
        load_progress(path, key=KEY | change)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_or_lost_end_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_progress(path, progress(), key=KEY)
    whole = path.read_bytes()
    random = np.random.default_rng(5)
    places = [0, 3, 8, 9, 50, len(whole) - 1, *random.integers(0, len(whole), 150).tolist()]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"damaged or cannot be read|belongs to another|other sites|another version"):
            load_progress(path, key=KEY)
    for end in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(RunError, match=r"c is damaged or cannot be read \(\w+\); delete it to start that arm anew"):
            load_progress(path, key=KEY)


def test_a_file_of_another_version_or_kind_is_one_line(tmp_path: Path) -> None:
    from safetensors.numpy import save

    path = tmp_path / "c"
    path.write_bytes(save({"x": np.zeros(1)}, {"format": "1", "key": json.dumps(KEY)}))
    with pytest.raises(RunError, match="written by another version of fedward; start the run anew"):
        load_progress(path, key=KEY)
    path.write_bytes(save({"x": np.zeros(1)}))
    with pytest.raises(RunError, match="another version"):
        load_progress(path, key=KEY)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match="damaged or cannot be read"):
        load_progress(path, key=KEY)


def test_a_history_longer_than_a_safetensors_header_may_be(tmp_path: Path) -> None:
    """Thousands of sites over hundreds of rounds: a header holds 100 MB."""
    path = tmp_path / "c"
    history = [{"round": 1, "sites": {"site-1": {"status": "x" * (5 << 20)}}}]
    save_progress(path, Progress(round=1, weights={}, history=history), key=KEY)
    with path.open("rb") as file:
        assert int.from_bytes(file.read(8), "little") < 1000  # so histories stand elsewhere
    found = load_progress(path, key=KEY)
    assert found is not None
    assert found.history == history


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(RunError, match=r"cannot write .*state.*; free some space or choose another --out"):
        save_progress(tmp_path / "state" / "federated" / "c", progress(), key=KEY)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from server.checkpoints import Progress, save_progress
path = Path(sys.argv[1])
for round_ in range(1, 10_000):
    value = np.full(1 << 19, round_, np.float32)
    save_progress(path, Progress(round_, weights={"w": value}, kept={"w": value}), key={})
    print(round_, flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_leaves_one_round_or_the_next(tmp_path: Path) -> None:
    path = tmp_path / "state" / "c"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    found_between = 0
    try:
        assert process.stdout.readline() == "1\n"
        for _ in range(12):  # read by somebody else all the while
            seen = path.read_bytes()
            (tmp_path / "copy").write_bytes(seen)
            copy = load_progress(tmp_path / "copy", key={})
            assert copy is not None
            assert (copy.weights["w"] == copy.round).all()
            assert (copy.kept["w"] == copy.round).all()
            found_between += 1
            time.sleep(0.003)
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
    found = load_progress(path, key={})
    assert found is not None
    assert found.round >= int(rest[-1] if rest else 1)
    assert (found.weights["w"] == found.round).all()
    assert list(path.parent.iterdir()) == [path]  # what the kill left is swept
    assert found_between == 12
