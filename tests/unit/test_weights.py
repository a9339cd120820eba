"""Weights: out of a model and back, in a file and back; replies that do not fit are refused."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array
from numpy.typing import NDArray
from torch import nn

from common.errors import ModelError, ReplyRefused, RunError
from common.packing import pack, unpack
from common.weights import (
    DTYPES,
    all_finite,
    check_like,
    delta_norm,
    digest,
    load,
    restore,
    save,
    state_of,
    to_arrays,
    trainable_names,
)

Arrays = dict[str, NDArray[Any]]


def network(seed: int = 1) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))


def trained(seed: int = 1) -> nn.Sequential:
    """With running statistics and a counter that are not their first values."""
    model = network(seed)
    model(torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(seed)))
    return model


# --- out of a model and back -----------------------------------------------------------------------------------------


def test_state_is_a_copy_in_the_model_s_order_with_integer_counters() -> None:
    model = trained()
    state = state_of(model)
    assert list(state) == list(model.state_dict())
    assert state["1.num_batches_tracked"].dtype == np.int64
    assert state["1.num_batches_tracked"].shape == ()
    assert state["0.weight"].dtype == np.float32
    before = state["0.weight"].copy()
    with torch.no_grad():
        model[0].weight.add_(1.0)  # type: ignore[union-attr, operator]
    assert np.array_equal(state["0.weight"], before)


def test_state_without_a_copy_is_encoded_alike() -> None:
    model = trained()
    assert pack(state_of(model, copy=False), DTYPES) == pack(state_of(model), DTYPES)
    rotated = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert digest(state_of(rotated, copy=False)) == digest(state_of(trained()))


def test_channels_last_models_give_c_contiguous_arrays() -> None:
    plain, rotated = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    rotated.load_state_dict(plain.state_dict())
    rotated = rotated.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not rotated.weight.is_contiguous()
    assert state_of(rotated)["weight"].flags.c_contiguous
    assert digest(state_of(rotated)) == digest(state_of(plain))
    restore(rotated, state_of(plain))
    assert not rotated.weight.is_contiguous(), "the layout is the model's own"
    assert torch.equal(rotated.weight, plain.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_only_float32_leaves_a_model(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=r"weight: weights of type torch\.\w+ cannot be exchanged"):
        state_of(nn.Linear(2, 2).to(dtype))


def test_restore_writes_in_place() -> None:
    source, target = trained(1), network(2)
    places = [tensor.data_ptr() for tensor in target.state_dict().values()]
    restore(target, state_of(source))
    assert [tensor.data_ptr() for tensor in target.state_dict().values()] == places
    assert digest(state_of(target)) == digest(state_of(source))
    assert all(p.requires_grad for p in target.parameters())


def test_restore_takes_the_read_only_arrays_of_a_message() -> None:
    received = unpack(pack(state_of(trained(1)), DTYPES), DTYPES)
    assert not received["0.weight"].flags.writeable
    model = network(2)
    restore(model, received)
    assert digest(state_of(model)) == digest(received)


def test_restore_during_a_backward_pass_is_noticed_by_autograd() -> None:
    model = nn.Linear(3, 3)
    loss = model(model(torch.ones(1, 3))).sum()
    restore(model, state_of(model))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def without(name: str) -> Callable[[Arrays], None]:
    return lambda state: state.pop(name)  # type: ignore[return-value]


def put(name: str, array: NDArray[Any]) -> Callable[[Arrays], None]:
    return lambda state: state.update({name: array})


MISFITS = [
    (without("3.bias"), r"missing '3\.bias'"),
    (put("zzz", np.zeros(2, np.float32)), "unexpected 'zzz'"),
    (put("3.bias", np.zeros(3, np.float32)), r"shape of '3\.bias' is \(3,\) instead of \(2,\)"),
    (put("3.bias", np.zeros((), np.float32)), r"shape of '3\.bias' is \(\) instead of \(2,\)"),
    (put("3.bias", np.zeros(2, np.float64)), r"type of '3\.bias' is float64 instead of float32"),
    (put("3.bias", np.zeros(2, ">f4")), r"type of '3\.bias' is >f4 instead of float32"),
    (put("1.num_batches_tracked", np.zeros((), np.float32)), "is float32 instead of int64"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_restore_refuses_what_does_not_fit_and_changes_nothing(change: Callable[[Arrays], None], message: str) -> None:
    model = network(2)
    before = digest(state_of(model))
    state = state_of(trained(1))
    change(state)
    with pytest.raises(ModelError, match=message):
        restore(model, state)
    assert digest(state_of(model)) == before


def test_trainable_names_are_parameters_that_are_not_frozen() -> None:
    model = network()
    model[3].bias.requires_grad_(False)  # type: ignore[union-attr, operator]
    assert trainable_names(model) == ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight")


# --- digest, norm, finiteness ----------------------------------------------------------------------------------------


def test_digest_vector() -> None:
    """Fixed once and for all: checkpoints and cached replies of earlier versions are named by it."""
    weights = {"b": np.arange(3, dtype=np.float32), "a": np.array(7, dtype=np.int64)}
    header = b'[["a","<i8",[]],["b","<f4",[3]]]\n'
    body = bytes([7, 0, 0, 0, 0, 0, 0, 0]) + bytes.fromhex("000000000000803f00000040")
    assert digest(weights) == hashlib.sha256(header + body).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([1.0, 2.0], np.float32)},
        {"w": np.array([1.0, 2.5], np.float32)},
        {"w": np.array([[1.0, 2.0]], np.float32)},
        {"w": np.array([1.0, 2.0], np.float32).view(np.int32)},
        {"w": np.array([1.0, 2.0], np.float32), "v": np.zeros(0, np.float32)},
    ],
)
def test_digest_sees_names_values_shapes_and_types(other: Arrays) -> None:
    assert digest(other) != digest({"w": np.array([1.0, 2.0], np.float32)})


def test_delta_norm_by_hand_ignores_other_names() -> None:
    before = {"w": np.zeros((2, 2), np.float32), "n": np.array(0, np.int64)}
    after = {"w": np.array([[3, 0], [0, 4]], np.float32), "n": np.array(99, np.int64)}
    assert delta_norm(after, before, ["w"]) == 5.0
    assert delta_norm(after, before, []) == 0.0


def test_delta_norm_counts_in_float64() -> None:
    """A float32 sum of three million ones in sequence would stop near 2^24 for larger arrays; this is exact."""
    count = 3_000_000
    after, before = {"w": np.full(count, 1e-3, np.float32)}, {"w": np.zeros(count, np.float32)}
    assert delta_norm(after, before, ["w"]) == pytest.approx(float(np.float32(1e-3)) * math.sqrt(count), rel=1e-14)


def test_delta_norm_of_what_is_not_finite() -> None:
    zero = {"w": np.zeros(2, np.float32)}
    assert math.isinf(delta_norm({"w": np.array([np.inf, 0], np.float32)}, zero, ["w"]))
    assert math.isnan(delta_norm({"w": np.array([np.nan, 0], np.float32)}, zero, ["w"]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_and_named(bad: float) -> None:
    template = state_of(trained())
    reply = state_of(trained())
    assert all_finite(reply)
    check_like(reply, template)
    reply["3.weight"][1, 7] = bad
    assert not all_finite(reply)
    with pytest.raises(ReplyRefused, match=r"not finite in '3\.weight'; the site's training diverged"):
        check_like(reply, template)


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_replies_that_do_not_fit_are_refused(change: Callable[[Arrays], None], message: str) -> None:
    reply = state_of(trained())
    change(reply)
    with pytest.raises(ReplyRefused, match=message):
        check_like(reply, state_of(trained()))


def test_refusals_are_one_short_line_whatever_the_names() -> None:
    reply = {f"\x1b[2J\n{'x' * 500}{index}": np.zeros(1, np.float32) for index in range(100)}
    with pytest.raises(ReplyRefused) as caught:
        check_like(reply, state_of(trained()))
    text = str(caught.value)
    assert "and 96 more" in text
    assert text.isprintable()
    assert len(text) < 1000


# --- Flower's records ------------------------------------------------------------------------------------------------


def test_arrays_are_what_flower_itself_would_write() -> None:
    """So Flower's strategies read them."""
    state = state_of(trained())
    record = to_arrays(state)
    for name, array in state.items():
        assert record[name] == Array.from_numpy_ndarray(array)
        assert np.array_equal(record[name].numpy(), array)


# --- files -----------------------------------------------------------------------------------------------------------


def test_equal_weights_are_equal_bytes_and_come_back(tmp_path: Path) -> None:
    state = state_of(trained())
    backwards = {name: np.asfortranarray(state[name]) if state[name].ndim else state[name] for name in reversed(state)}
    save(state, tmp_path / "a.safetensors")
    save(backwards, tmp_path / "b.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content == (tmp_path / "b.safetensors").read_bytes()
    assert b"__metadata__" not in content
    loaded = load(tmp_path / "a.safetensors")
    assert list(loaded) == sorted(state)
    assert digest(loaded) == digest(state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_saved_file_is_torch_s_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = trained()
    save(state_of(model), tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_saving_replaces_the_old_file_only_when_the_new_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save(state_of(network(1)), path)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device; free some space"):
        save(state_of(network(2)), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_saving_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*: No such file or directory"):
        save(state_of(network(1)), tmp_path / "absent" / "m.safetensors")


def test_only_types_that_travel_are_saved_and_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="w: arrays of type float64"):
        save({"w": np.zeros(2)}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="'w' hold other types than float32"):
        load(tmp_path / "w.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such weights file"):
        load(tmp_path / "absent.safetensors")
    path = tmp_path / "m.safetensors"
    save(state_of(network(1)), path)
    content = path.read_bytes()
    for damaged in (b"", content[:-3], b"\xff" * 8 + content[8:], content.replace(b'"F32"', b'"Q99"', 1)):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"not a readable \.safetensors file"):
            load(path)
