"""Which device a site trains on, and how: chosen at the site, never by the study."""

from __future__ import annotations

import re

import torch

from common.errors import DeviceError


def choose_device(wanted: str) -> torch.device:
    """``auto`` (a GPU where there is one), ``cpu`` or ``cuda:N``. Raises :class:`DeviceError`, never falls back."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if match is None:
        raise DeviceError(f"device {wanted!r} is unknown; use auto, cpu or cuda:N")
    index = int(match[1] or 0)
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device {wanted} asked for, but no CUDA GPU is usable here; check the driver or use device: cpu"
        )
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"device {wanted} asked for, but there are {torch.cuda.device_count()} GPUs; they count from 0"
        )
    return torch.device("cuda", index)
