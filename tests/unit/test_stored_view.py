"""Views that lie on the disk: made once, taken up again, shared, removed; and memory that no core dump holds."""

from __future__ import annotations

import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.config import SiteConfig
from client.home import Home
from client.site import Site
from client.training import FitSeed, LocalFit
from client.upkeep import forget_views
from client.vault import preparing, record_file
from client.vault.keys import create_key_file, provider
from client.vault.prepared import PreparedView
from client.vault.private_memory import private_tensor
from client.vault.store import Record, Vault
from client.vault.stored_view import JoinedView, StoredView
from client.vault.view import View, ViewCache, prepare_view
from common.errors import DataError, VaultError
from common.models import build
from common.study import Study

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SIZE = 16


def study(**changes: Any) -> Study:
    return Study.model_validate(
        {"name": "v", "task": "binary", "classes": ["normal", "pneumonia"], "image": {"size": SIZE}} | changes
    )


def records(count: int, start: int = 0, side: int = 20) -> list[Record]:
    return [
        Record(
            np.random.default_rng(number).integers(0, 256, (side, side + 4)).astype(np.uint8),
            f"p{number // 2}",
            {"label": (("normal", "pneumonia")[number % 2],)},
            "train",
        )
        for number in range(start, start + count)
    ]


def vault_of(folder: Path, found: list[Record], name: str = "vault.sqlite") -> Vault:
    if not (folder / "key").exists():
        create_key_file(folder / "key")
    vault = Vault.create(folder / name, provider("file:key", base=folder), synthetic=True, source="tests")
    vault.add(found)
    return vault


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with vault_of(tmp_path, records(10)) as opened:
        yield opened


def everything(view: PreparedView) -> torch.Tensor:
    return view.floats(torch.arange(len(view)))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "views").iterdir())


def cache(cap: int = 0, days: float = 0.0) -> ViewCache:
    return ViewCache(cap, lambda: NOW + timedelta(days=days))


def test_a_stored_view_is_made_once_and_only_its_owner_may_read_it(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = cache().get(vault, study(), "train")
    assert isinstance(view, StoredView)
    (path,) = (vault.path.parent / "views").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_size == record_file.HEADER_BYTES + 10 * (SIZE * SIZE + 28)
    inode = path.stat().st_ino
    monkeypatch.setattr(Vault, "read_many", None)  # another process prepares nothing
    again = cache().get(vault, study(seed=5, name="other"), "train")
    assert torch.equal(everything(again), everything(view))
    assert path.stat().st_ino == inode


def test_no_image_is_on_the_disk_in_the_clear(tmp_path: Path) -> None:
    pattern = np.frombuffer(b"PIXEL-MARKER-ROW", np.uint8)
    marked = [
        Record(np.tile(pattern, (16, 1)) ^ np.uint8(n), "MARKER-NAME", {"label": ("normal",)}, "train")
        for n in range(40)
    ]
    with vault_of(tmp_path, marked) as vault:
        view = cache().get(vault, study(), "train")
        assert (everything(view)[0, 0] * 255).round().to(torch.uint8).numpy().tobytes() in {
            record.pixels.tobytes() for record in marked
        }
    for path in (tmp_path / "views").iterdir():
        content = path.read_bytes()
        assert not any(marker in content for marker in (b"MARKER", b"PIXEL", b"normal", marked[3].pixels.tobytes()))


def test_any_rows_in_any_order_are_those_of_the_view_in_memory(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_file, "_BUFFER_BYTES", 3 * (SIZE * SIZE + 28))  # three records at once
    held, stored = prepare_view(vault, study(), "train"), cache().get(vault, study(), "train")
    for rows in ([], [9], [3, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7], [9, 0, 8, 1, 2, 7], list(range(9, -1, -1))):
        chosen = torch.tensor(rows, dtype=torch.int64)
        assert torch.equal(stored.floats(chosen), held.floats(chosen))
        assert stored.masks_of(chosen) is None
    for rows in ([-1], [10], [0, 99]):
        with pytest.raises(IndexError, match="has no rows"):
            stored.floats(torch.tensor(rows))
    assert (len(stored), stored.patient_count, stored.masked, stored.device.type) == (10, 5, 0, "cpu")
    assert torch.equal(stored.targets, held.targets)
    assert torch.equal(stored.patients, held.patients)


def test_a_kept_stored_view_is_handed_out_again(vault: Vault) -> None:
    cap = 10 * SIZE * SIZE + 100  # not enough for the tensors
    with_room = cache(cap + (4 << 20))
    del cap
    assert isinstance(with_room.get(vault, study(), "train"), View)
    some = cache()
    assert some.get(vault, study(), "train") is not some.get(vault, study(), "train")
    assert some.bytes == 0
    many = vault_of(vault.path.parent, records(60, 100), "many.sqlite")
    wide = study(image={"size": 224})
    keeping = cache(8 << 20)
    # 60 images of 224 pixels a side take 3 MB: less than the cap, but more than the room that is left for them.
    stored = keeping.get(many, wide, "train", room=1 << 20)
    assert isinstance(stored, StoredView)
    assert keeping.get(many, wide, "train", room=1 << 20) is stored
    assert keeping.bytes == stored.bytes < 3 << 20
    many.close()


def test_training_from_either_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    made = study(
        image={"size": 32},
        augment={"rotate_deg": 5, "shift": 0.05, "brightness": 0.1},
        model={"name": "cnn", "norm": "group", "params": {"filters": [8, 8], "hidden": [16]}},
        training={"batch_size": 8},
    )
    found = []
    with vault_of(tmp_path, records(40, side=40)) as vault:
        for view in (prepare_view(vault, made, "train"), cache().get(vault, made, "train")):
            model = build(made, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            fit = LocalFit(model, view, made, FitSeed(7, 0, "s", 1)).run()
            found.append((fit, {name: value.clone() for name, value in model.state_dict().items()}))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


@pytest.mark.parametrize("side", [8, 700])
def test_threads_change_nothing(tmp_path: Path, side: int) -> None:
    with vault_of(tmp_path, records(150 if side == 8 else 12, side=side)) as vault:
        one, stored = prepare_view(vault, study(), "train"), everything(cache().get(vault, study(), "train"))
        torch.set_num_threads(3)
        assert torch.equal(prepare_view(vault, study(), "train").images, one.images)
        cache().forget()
        for path in (tmp_path / "views").iterdir():
            path.unlink()
        assert torch.equal(everything(cache().get(vault, study(), "train")), stored)
        assert torch.equal(stored, everything(one))


def test_an_image_that_does_not_fit_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    ct = Record(np.zeros((9, 9), np.int16), "ct", {"label": ("normal",)}, "train")
    with vault_of(tmp_path, [*records(2), ct, *records(90, 100)]) as vault:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with pytest.raises(DataError, match=r"row 3: .*preprocess\.window"):
                cache().get(vault, study(), "train")
            assert files(tmp_path) == []


def test_a_newer_generation_removes_older_views_of_every_study(vault: Vault) -> None:
    home = vault.path.parent
    other = vault_of(home, records(4, 50), "other.sqlite")
    shared = cache()
    for chosen, asked in ((study(), vault), (study(image={"size": 12}), vault), (study(), other)):
        shared.get(asked, chosen, "train")
    assert len(files(home)) == 3
    (home / "views" / "notes.txt").write_text("not a view")
    vault.add(records(3, 500))
    assert len(shared.get(vault, study(), "train")) == 13
    names = files(home)
    assert len(names) == 3
    assert sum(name.startswith(f"{vault.id}-{vault.generation}-") for name in names) == 1
    assert sum(name.startswith(other.id) for name in names) == 1
    other.close()


def test_a_view_in_use_outlives_its_removal(vault: Vault) -> None:
    view = cache().get(vault, study(), "train")
    before = everything(view)
    vault.add(records(3, 500))
    cache().get(vault, study(), "train")
    assert torch.equal(everything(view), before)


def test_views_that_nobody_used_for_thirty_days_go(vault: Vault) -> None:
    home = vault.path.parent
    cache(days=0).get(vault, study(), "train")
    cache(days=0).get(vault, study(image={"size": 12}), "train")
    assert len(files(home)) == 2
    cache(days=29).get(vault, study(), "train")  # used, which keeps it
    assert len(files(home)) == 2
    cache(days=31).get(vault, study(), "train")
    assert len(files(home)) == 1
    cache(1 << 30, days=62).get(vault, study(), "train")  # also where all fit in memory now
    assert files(home) == []


def test_forgetting_removes_stored_views(vault: Vault) -> None:
    home = vault.path.parent
    shared = cache()
    shared.get(vault, study(), "train")
    shared.forget("0" * 32)
    assert len(files(home)) == 1
    shared.forget(vault.id)
    assert files(home) == []
    shared.get(vault, study(), "train")
    shared.forget()
    assert files(home) == []


def test_code_that_prepares_otherwise_makes_the_view_anew(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    cache().get(vault, study(), "train")
    (path,) = (vault.path.parent / "views").iterdir()
    inode = path.stat().st_ino
    monkeypatch.setattr(preparing, "_preparation", lambda: b"another release")
    cache().get(vault, study(), "train")
    assert files(vault.path.parent) == [path.name]
    assert path.stat().st_ino != inode


def test_a_full_disk_names_the_bytes_and_leaves_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = record_file.HEADER_BYTES + 10 * (SIZE * SIZE + 28)
    with monkeypatch.context() as small:
        small.setattr(
            record_file.shutil,
            "disk_usage",
            lambda _: type("Usage", (), {"free": needed - record_file.HEADER_BYTES - 1}),
        )
        with pytest.raises(VaultError, match=rf"no room for the prepared view .* takes {needed} bytes .*free disk"):
            cache().get(vault, study(), "train")
        assert files(vault.path.parent) == []
    # The same from the kernel, halfway: a limit on the size of files.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (needed // 2, before[1]))
    try:
        with pytest.raises(VaultError, match=rf"takes {needed} bytes"):
            cache().get(vault, study(), "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(vault.path.parent) == []
    assert len(cache().get(vault, study(), "train")) == 10


def test_a_folder_that_cannot_be_one_is_a_clear_error(vault: Vault) -> None:
    (vault.path.parent / "views").write_text("in the way")
    with pytest.raises(VaultError, match=r"cannot be used: .*check the disk, and who may write"):
        cache().get(vault, study(), "train")


class Builder:
    """A process that builds the view and says a dot after every few bytes that it has written."""

    def __init__(self, folder: Path, pause: float) -> None:
        self.said, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                write = record_file._write

                def slowly(file: int, content: bytes) -> None:
                    for start in range(0, len(content), 997):  # torn in the middle of records
                        write(file, content[start : start + 997])
                        os.write(says, b".")
                        time.sleep(pause)

                record_file._write = slowly
                with Vault.open(folder / "vault.sqlite", provider("file:key", base=folder)) as vault:
                    os.write(says, b"!" if len(cache().get(vault, study(), "train")) == 200 else b"?")
            finally:
                os._exit(0)
        os.close(says)

    def wait_for(self, dots: int) -> None:
        for _ in range(dots):
            assert os.read(self.said, 1) == b"."

    def rest(self) -> bytes:
        """What it says until it ends."""
        with os.fdopen(self.said, "rb") as said:
            found = said.read()
        os.waitpid(self.pid, 0)
        return found

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.rest()


def test_a_killed_build_goes_on_from_its_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vault_of(tmp_path, records(200)) as vault:
        wanted = everything(prepare_view(vault, study(), "train"))
        for dots in (1, 2, 7, 13):  # of some 60: the header, the first records, the middle
            process = Builder(tmp_path, 0.002)
            process.wait_for(dots)
            process.kill()
            (name,) = files(tmp_path)
            assert name.endswith(".partial")
            assert stat.S_IMODE((tmp_path / "views" / name).stat().st_mode) == 0o600
        partial = tmp_path / "views" / name
        size = partial.stat().st_size
        stride = SIZE * SIZE + 28
        whole = (size - record_file.HEADER_BYTES) // stride
        assert 20 < whole < 200
        with partial.open("r+b") as file:  # a power cut may lose what is in the middle
            file.seek(record_file.HEADER_BYTES + 20 * stride)
            file.write(bytes(stride))
        prepared: list[int] = []
        read_many = Vault.read_many
        monkeypatch.setattr(Vault, "read_many", lambda self, ids: prepared.append(len(ids)) or read_many(self, ids))
        view = cache().get(vault, study(), "train")
        assert prepared == [180]
        assert torch.equal(everything(view), wanted)
        assert files(tmp_path) == [name[1 : -len(".partial")]]


@pytest.mark.slow
def test_builds_killed_at_random_moments_all_come_out_right(tmp_path: Path) -> None:
    random = np.random.default_rng(20260301)
    with vault_of(tmp_path, records(200)) as vault:
        wanted = everything(prepare_view(vault, study(), "train"))
        for _ in range(40):
            for _ in range(int(random.integers(1, 4))):
                process = Builder(tmp_path, 0.0)
                time.sleep(float(random.uniform(0, 0.06)))
                process.kill()
            assert torch.equal(everything(cache().get(vault, study(), "train")), wanted)
            assert len(files(tmp_path)) == 1
            cache().get(vault, study(), "train")
            (tmp_path / "views" / files(tmp_path)[0]).unlink()


def test_a_build_that_was_interrupted_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vault_of(tmp_path, records(200)) as vault:
        wanted = everything(prepare_view(vault, study(), "train"))
        write, calls = record_file._write, iter(range(9))

        def stop(file: int, content: bytes) -> None:
            if next(calls) == 3:
                raise KeyboardInterrupt
            write(file, content)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(record_file, "_write", stop)
            cache().get(vault, study(), "train")
        (name,) = files(tmp_path)
        assert name.endswith(".partial")
        assert torch.equal(everything(cache().get(vault, study(), "train")), wanted)


def test_two_processes_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vault_of(tmp_path, records(200)) as vault:
        processes = [Builder(tmp_path, 0.002) for _ in range(2)]
        while not list((tmp_path / "views").glob(".*.partial")):
            time.sleep(0.001)
        with monkeypatch.context() as patched:
            patched.setattr(Vault, "read_many", None)  # this process only waits
            mine = cache().get(vault, study(), "train")
        outputs = [process.rest() for process in processes]
        assert all(output.endswith(b"!") for output in outputs)
        assert sum(len(output) > 50 for output in outputs) == 1  # the other says a dot at most, for a header
        assert torch.equal(everything(mine), everything(prepare_view(vault, study(), "train")))
        assert len(files(tmp_path)) == 1


def test_a_build_at_work_is_not_swept_away(tmp_path: Path) -> None:
    with vault_of(tmp_path, records(200)) as vault:
        process = Builder(tmp_path, 0.02)
        process.wait_for(1)
        (name,) = files(tmp_path)
        record_file.sweep(tmp_path / "views", vault.id, None, NOW + timedelta(days=10_000))
        assert files(tmp_path) == [name]
        process.kill()
        record_file.sweep(tmp_path / "views", vault.id, None, NOW)
        assert files(tmp_path) == []


def test_an_older_build_that_nobody_finished_is_swept_away(tmp_path: Path) -> None:
    with vault_of(tmp_path, records(4)) as vault:
        (tmp_path / "views").mkdir()
        left = tmp_path / "views" / f".{vault.id}-1-{'0' * 16}-train.view.partial"
        left.write_bytes(b"torn")
        cache(1 << 30).get(vault, study(), "train")
        assert files(tmp_path) == []


def segmented(count: int, start: int) -> list[Record]:
    return [
        Record(r.pixels, r.patient, {"label": ("pneumonia",)}, "train", mask=(r.pixels > 100).astype(np.uint8))
        for r in records(count, start)
    ]


@pytest.mark.parametrize("masks", [False, True])
def test_stored_and_held_views_are_joined(tmp_path: Path, masks: bool) -> None:
    chosen = study().model_copy(update={"task": "segmentation"}) if masks else study()
    make: Callable[[int, int], list[Record]] = segmented if masks else records
    vaults = [vault_of(tmp_path, make(n, 100 * n), f"{n}.sqlite") for n in (5, 8, 3)]
    held = [prepare_view(vault, chosen, "train") for vault in vaults]
    stored = [cache().get(vault, chosen, "train") for vault in vaults]
    wanted = View.concatenate(held)
    empty = prepare_view(vaults[0], chosen, "val")
    for mixed in ([stored[0], held[1], stored[2]], [held[0], empty, stored[1], held[2]], stored):
        joined = View.concatenate(mixed)
        assert isinstance(joined, JoinedView)
        assert len(joined) == 16
        assert torch.equal(joined.targets, wanted.targets)
        assert torch.equal(joined.patients, wanted.patients)
        assert (joined.patient_count, joined.masked) == (wanted.patient_count, wanted.masked)
        for rows in (torch.arange(16), torch.tensor([15, 0, 5, 4, 13, 12, 5]), torch.tensor([], dtype=torch.int64)):
            assert torch.equal(joined.floats(rows), wanted.floats(rows))
            found, right = joined.masks_of(rows), wanted.masks_of(rows)
            assert (found is None) == (right is None) == (not masks)
            assert found is None or (right is not None and torch.equal(found, right))
        for outside in (torch.tensor([16]), torch.tensor([-1])):
            with pytest.raises(IndexError, match="has no rows"):
                joined.floats(outside)
        assert joined.bytes > sum(view.bytes for view in mixed)
    if masks:
        with pytest.raises(ValueError, match="with and without masks"):
            View.concatenate([stored[0], prepare_view(vaults[1], study(), "train")])
    for vault in vaults:
        vault.close()


def site_of(folder: Path, count: int, start: int) -> Path:
    folder.mkdir()
    vault_of(folder, records(count, start)).close()
    SiteConfig(alias=folder.name, key="file:key", device="cpu").save(folder)
    return folder


def test_a_pooled_site_keeps_to_the_cap_all_members_together(tmp_path: Path) -> None:
    homes = [site_of(tmp_path / f"site-{n}", 20, 100 * n) for n in range(3)]
    (tmp_path / "pooled").mkdir()
    SiteConfig(alias="pooled", members=tuple(f"../{home.name}" for home in homes), device="cpu").save(
        tmp_path / "pooled"
    )
    one = 20 * (SIZE * SIZE + 2 * 4 + 8)
    plain, tight = Site.open(tmp_path / "pooled", cache(1 << 30)), Site.open(tmp_path / "pooled", cache(one + one // 2))
    wanted, found = plain.view(study(), "train"), tight.require(study(), "train")
    assert isinstance(wanted, View)
    assert isinstance(found, JoinedView)
    assert torch.equal(everything(found), everything(wanted))
    assert [(home / "views").exists() for home in homes] == [False, True, True]
    plain.close()
    tight.close()


def test_a_hospitals_stored_views_lie_in_its_state_where_an_erasure_finds_them(tmp_path: Path) -> None:
    home = Home.init(tmp_path / "site", alias="ward", synthetic=True)
    with home.vault() as vault:
        vault.add(records(6))
    site = Site.open(home.directory, cache())
    assert isinstance(site.view(study(), "train"), StoredView)
    assert len(list((home.state / "views").iterdir())) == 1
    forget_views(home)
    assert list((home.state / "views").iterdir()) == []
    site.close()


def test_an_erasure_while_a_view_is_made_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home.init(tmp_path / "site", alias="ward", synthetic=True)
    with home.vault() as vault:
        vault.add(records(200))
    write = record_file._write

    def erased(file: int, content: bytes) -> None:
        write(file, content)
        if len(content) > record_file.HEADER_BYTES:
            forget_views(home)

    site = Site.open(home.directory, cache())
    with monkeypatch.context() as patched, pytest.raises(VaultError, match="removed while it was made"):
        patched.setattr(record_file, "_write", erased)
        site.view(study(), "train")
    assert list((home.state / "views").iterdir()) == []
    assert len(site.view(study(), "train")) == 200
    site.close()


def test_many_stored_views_leave_no_file_open(vault: Vault) -> None:
    shared = cache()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        everything(shared.get(vault, study(), "train"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def mapping(address: int) -> dict[str, str]:
    """What ``/proc/self/smaps`` says of the mapping that holds ``address``."""
    found: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside:
            name, _, value = line.partition(":")
            found[name] = value
    return found


def test_private_memory_is_not_dumped_and_locked_as_far_as_allowed() -> None:
    small = private_tensor((3, 1000))
    assert small.shape == (3, 1000)
    assert small.dtype == torch.uint8
    assert not small.any()
    small.fill_(7)
    assert "dd" in mapping(small.data_ptr())["VmFlags"].split()
    assert "lo" in mapping(small.data_ptr())["VmFlags"].split()
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, before[1]))
    try:
        large = private_tensor((2 << 20,))
        assert "dd" in mapping(large.data_ptr())["VmFlags"].split()
        assert "lo" not in mapping(large.data_ptr())["VmFlags"].split()
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    assert private_tensor((0, 5)).shape == (0, 5)


def test_private_memory_goes_with_its_last_tensor() -> None:
    made = private_tensor((4 << 20,))
    made.fill_(1)
    part, address = made[:10], made.data_ptr()
    del made
    assert int(part.sum()) == 10
    assert "dd" in mapping(address)["VmFlags"].split()
    del part
    assert "dd" not in mapping(address).get("VmFlags", "").split()


def test_images_in_memory_are_private(vault: Vault) -> None:
    held, stored = prepare_view(vault, study(), "train"), cache().get(vault, study(), "train")
    assert isinstance(stored, StoredView)
    for tensor in (held.images, stored._plain):
        assert "dd" in mapping(tensor.data_ptr())["VmFlags"].split()


def test_sweeping_takes_no_time_worth_speaking_of(tmp_path: Path) -> None:
    started = time.process_time()
    for _ in range(1000):
        record_file.sweep(tmp_path / "views", "0" * 32, 1, NOW)
    assert time.process_time() - started < 1.0
