"""Parameters as named arrays: out of a model and back, into a file and back.

Weights are a mapping from the names of a model's state dict to arrays: float32 parameters and buffers, integer
counters. Nothing that comes from elsewhere is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.errors import ModelError, ReplyRefused
from common.files import write_atomically

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

Weights = Mapping[str, NDArray[Any]]
"""Name in the state dict -> C-contiguous array of one of :data:`DTYPES`."""

DTYPES = ("float32", "int64", "int32", "uint8")
"""What may travel and be stored. Half precision is a matter of training, not of what is exchanged."""

STATISTICS = ("float64", "int64")
"""What statistics (``common.metrics``) are made of."""

FILES = ("uint8",)
"""What files travel as."""

_STYPE = "numpy.ndarray"
_CHUNK = 1 << 20
_SHOWN = 4


def state_of(model: nn.Module, *, copy: bool = True) -> dict[str, NDArray[Any]]:
    """Copies of the model's parameters and buffers, in the state dict's order, C-contiguous, on the CPU.

    With ``copy=False`` arrays may share the model's memory: for use before the model changes, as in
    ``to_arrays(state_of(model, copy=False))``.
    Raises :class:`ModelError` for a tensor of a type outside :data:`DTYPES`.
    """
    state: dict[str, NDArray[Any]] = {}
    for name, tensor in model.state_dict().items():
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise ModelError(
                f"{name}: weights of type {tensor.dtype} cannot be exchanged (only {', '.join(DTYPES)}); "
                "build the model in float32, or register that buffer with persistent=False"
            )
        array = tensor.detach().cpu().numpy()
        # Not ascontiguousarray, which gives a counter a dimension; order="C" undoes channels-last.
        state[name] = np.array(array, order="C", copy=True if copy else None)
    return state


def restore(model: nn.Module, weights: Weights) -> None:
    """Write ``weights`` into the model's own tensors, in place and on their device: all of them, or none.

    Raises :class:`ModelError` where names, shapes or types differ.
    """
    state = model.state_dict()
    expected = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()}
    found = _differences(expected, weights)
    if found:
        raise ModelError(f"weights do not fit the model: {'; '.join(found)}; both must come from one study")
    with torch.no_grad():
        for name, tensor in state.items():
            array = weights[name]
            if tensor.device.type == "cpu":
                # Through NumPy, because torch warns of arrays it may not write to, such as those that came packed.
                np.copyto(tensor.numpy(), array)
                torch.autograd.graph.increment_version(tensor)
            else:
                tensor.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that training changes, in order; buffers and frozen parameters are not among them."""
    return tuple(name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, each once, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def frozen_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have parameters and train none of them, each by its name; what is inside one is among them."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if any(True for _ in module.parameters()) and not any(one.requires_grad for one in module.parameters())
    }


def changing_names(model: nn.Module) -> tuple[str, ...]:
    """Names in the state dict that a fit may change, in order: what is trained, and buffers of what is not frozen.

    Only these come back from a site; the rest is what it was sent.
    """
    trained, frozen = set(trainable_names(model)), tuple(f"{name}." for name in frozen_modules(model) if name)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return tuple(
        name for name in model.state_dict() if name in trained or not (name in parameters or name.startswith(frozen))
    )


def digest(weights: Weights) -> str:
    """SHA-256, hexadecimal, over names, types, shapes and bytes; the mapping's order does not count."""
    names = sorted(weights)
    header = [(name, weights[name].dtype.str, list(weights[name].shape)) for name in names]
    total = hashlib.sha256(json.dumps(header, separators=(",", ":")).encode())
    total.update(b"\n")  # JSON holds no line break, so header and bytes cannot be shifted into each other
    for name in names:
        total.update(_bytes_of(weights[name]))
    return total.hexdigest()


def delta_norm(after: Weights, before: Weights, names: Collection[str]) -> float:
    """Euclidean norm of ``after - before`` over ``names``, in float64; infinite or NaN where they are.

    The same to the last bit whatever the order of ``names`` and the number of threads.
    """
    sums: list[float] = []
    with np.errstate(invalid="ignore", over="ignore"):
        for name in names:
            a, b = after[name].reshape(-1), before[name].reshape(-1)
            for start in range(0, a.size, _CHUNK):
                part = slice(start, start + _CHUNK)
                difference = np.subtract(a[part], b[part], dtype=np.float64)
                np.square(difference, out=difference)
                sums.append(float(difference.sum()))
    return math.sqrt(math.fsum(sums))


def all_finite(weights: Weights) -> bool:
    """Whether no array holds an infinity or a NaN."""
    return not any(True for _ in _not_finite(weights))


def check_like(weights: Weights, template: Weights) -> None:
    """Whether a reply's weights may be added to the model that ``template`` describes.

    Raises :class:`ReplyRefused` naming the first few names, shapes or types that differ, or arrays that are not finite.
    """
    found = _differences({name: (array.shape, array.dtype.name) for name, array in template.items()}, weights)
    if found:
        raise ReplyRefused(
            f"weights do not fit the study's model: {'; '.join(found)}; the site must build the same study"
        )
    bad = list(_not_finite(weights))
    if bad:
        raise ReplyRefused(
            f"weights are not finite in {_listed(bad)}; the site's training diverged: lower the learning rate "
            "or set training.optimiser.clip_norm"
        )


def to_arrays(weights: Weights) -> ArrayRecord:
    """Flower's record of the weights, for its strategies; what travels is packed (``common.packing``).

    Each array is stored as Flower itself does it (NPY 1.0), with one copy. Raises :class:`ModelError` for other types.
    """
    from flwr.app import Array, ArrayRecord

    record = ArrayRecord()
    for name, array in weights.items():
        _require_type(name, array)
        data = b"".join((_npy_header(array.dtype.name, array.shape), _bytes_of(array)))
        record[name] = Array(dtype=array.dtype.name, shape=array.shape, stype=_STYPE, data=data)
    return record


def save(weights: Weights, path: Path) -> None:
    """Write ``.safetensors`` without metadata, so that equal weights are equal bytes; the old file stays until then.

    Raises :class:`RunError` where it cannot be written (disk full, no permission).
    """
    from safetensors.numpy import save as encode

    for name in weights:
        _require_type(name, weights[name])
    content = encode({name: np.array(weights[name], order="C") for name in sorted(weights)})
    write_atomically(path, content)


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Weights that :func:`save` wrote, sorted by name. Raises :class:`ModelError` where they cannot be read."""
    try:
        return parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such weights file; name a finished run's model.safetensors") from None
    except OSError as error:
        raise ModelError(f"{path}: not a readable .safetensors file ({error}); restore it from a copy") from None


def parse(content: bytes, path: str) -> dict[str, NDArray[Any]]:
    """Weights from a ``.safetensors`` file's bytes; ``path`` names it in errors. Raises :class:`ModelError`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as decode

    try:
        weights = decode(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: not a readable .safetensors file ({error}); restore it from a copy") from None
    strange = [name for name in sorted(weights) if weights[name].dtype.name not in DTYPES]
    if strange:
        raise ModelError(
            f"{path}: {_listed(strange)} hold other types than {', '.join(DTYPES)}; convert them to float32"
        )
    return {name: weights[name] for name in sorted(weights)}


def _require_type(name: str, array: NDArray[Any]) -> None:
    """Raises :class:`ModelError` for a type outside :data:`DTYPES`, or one in the other byte order."""
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        raise ModelError(
            f"{name}: arrays of type {array.dtype} are not exchanged, only {', '.join(DTYPES)}; convert it to float32"
        )


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """NPY 1.0 header (NumPy enhancement proposal 1), padded to 64 bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The array's bytes in C order, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _not_finite(weights: Weights) -> Iterator[str]:
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield name


def _differences(expected: Mapping[str, tuple[tuple[int, ...], str]], weights: Weights) -> list[str]:
    """How ``weights`` differ from the expected shapes and types; at most one finding of each kind."""
    missing = [name for name in expected if name not in weights]
    extra = [name for name in weights if name not in expected]
    shapes, types = [], []
    for name, (shape, dtype) in expected.items():
        if name in weights and tuple(weights[name].shape) != shape:
            shapes.append(f"{_quoted(name)} is {tuple(weights[name].shape)} instead of {shape}")
        if name in weights and weights[name].dtype != np.dtype(dtype):
            types.append(f"{_quoted(name)} is {weights[name].dtype} instead of {dtype}")
    kinds = (("missing ", missing), ("unexpected ", extra), ("shape of ", shapes), ("type of ", types))
    listed = [
        (word, names if names is shapes or names is types else [_quoted(n) for n in names]) for word, names in kinds
    ]
    return [word + _join(names) for word, names in listed if names]


def _quoted(name: object) -> str:
    """A name from elsewhere, safe to print: escaped and cut."""
    text = repr(name)
    return text if len(text) <= 80 else text[:77] + "..."


def _listed(names: list[str]) -> str:
    return _join([_quoted(name) for name in names])


def _join(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
