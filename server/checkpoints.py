"""A run's progress in one file, replaced atomically every round: weights, strategy state, history.

One safetensors file holds it all, so that a crash leaves either the previous round or
this one, never a mixture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import RunError
from common.files import write_atomically
from common.weights import Weights

_FORMAT = "1"
Arrays = dict[str, NDArray[Any]]


@dataclass
class Progress:
    """Everything the round loop needs to go on as if it had never stopped."""

    round: int = 0
    weights: Weights = field(default_factory=dict)
    strategy: Arrays = field(default_factory=dict)
    kept: Weights = field(default_factory=dict)
    validation: Arrays = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


_GROUPS = ("weights", "strategy", "kept", "validation")


def save_progress(path: Path, progress: Progress, *, key: Mapping[str, Any]) -> None:
    """Write ``progress`` atomically. ``key`` names the work (study hash, arm, repeat) it belongs to."""
    tensors = {
        f"{group}:{name}": np.array(value, order="C")
        for group in _GROUPS
        for name, value in getattr(progress, group).items()
    }
    facts = {"round": progress.round, "facts": progress.facts, "history": progress.history, "done": progress.done}
    metadata = {"format": _FORMAT, "key": json.dumps(dict(key), sort_keys=True), "progress": json.dumps(facts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata))


def load_progress(path: Path, *, key: Mapping[str, Any]) -> Progress | None:
    """The progress saved for ``key``, or ``None``. Raises :class:`RunError` for another study's, or a damaged file."""
    if not path.exists():
        return None
    try:
        with safe_open(os.fspath(path), "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise RunError(f"{path.name} was written by another version of fedward; start the run anew")
            if metadata["key"] != json.dumps(dict(key), sort_keys=True):
                raise RunError(
                    f"{path.name} belongs to another study or arm; resume with the study it was started with"
                )
            facts = json.loads(metadata["progress"])
            groups: dict[str, Arrays] = {group: {} for group in _GROUPS}
            for name in file.keys():  # noqa: SIM118 (safetensors' handle is no mapping)
                group, _, tensor = name.partition(":")
                groups[group][tensor] = file.get_tensor(name)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(
            f"{path.name} cannot be read ({type(error).__name__}); delete it to start that arm anew"
        ) from None
    return Progress(facts["round"], facts=facts["facts"], history=facts["history"], done=facts["done"], **groups)
