"""What a child may answer, and what of it is taken: a child that a hostile file has taken over writes what it likes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from client.ingest import dicom_reasons, reasons
from client.ingest.child import LONGEST_TEXT, Role
from client.ingest.kinds import Decoded, Identity, MaskOf, Picture, Refused, Rules, allowed_attributes

_REASONS = {reason.code: reason for reason in (*dicom_reasons.ALL, *reasons.ALL)}
_ROUNDED = 1.05  # sides made square are rounded to whole pixels


class Nonsense(Exception):
    """The answer breaks the rules."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
_Code = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+){0,7}$", max_length=64)]
_Number = Annotated[int, Field(ge=0, lt=2**31)]
_Side = Annotated[int, Field(ge=1, lt=2**31)]
_Scale = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Ready(_Strict):
    held: Annotated[tuple[_Code, ...], Field(max_length=16)]


class Request(_Strict):
    role: Role
    size: int


class _Identity(_Strict):
    patient: _Text
    sop: _Text
    study: _Text
    series: _Text
    accession: _Text


class _Picture(_Strict):
    dtype: Literal["uint8", "uint16", "int16"]
    shape: Annotated[tuple[_Side, ...], Field(min_length=2, max_length=3)]
    number: _Number
    attributes: Annotated[dict[_Text, _Text], Field(max_length=64)]
    labels: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=64)]
    scale: tuple[_Scale, _Scale]


class _Mask(_Strict):
    sop: _Text
    frame: _Number
    segment: _Number
    shape: Annotated[tuple[_Side, ...], Field(min_length=2, max_length=2)]


class _Decoded(_Strict):
    identity: _Identity
    pictures: tuple[_Picture, ...]
    masks: tuple[_Mask, ...]
    warnings: Annotated[tuple[_Code, ...], Field(max_length=32)]


class Reply(_Strict):
    decoded: _Decoded | None = None
    refused: _Code | None = None


def taken(
    reply: Reply, role: Role, rules: Rules, pixels: Callable[[str, tuple[int, ...], int], NDArray[Any]]
) -> Decoded | Refused:
    """What ``reply`` to a job of that ``role`` says, where it keeps the ``rules``.

    ``pixels`` copies an array of a type and shape out of the child's memory, from a byte on. The words of a refusal
    are ours: a child only gives their code. Raises :class:`Nonsense`.
    """
    if reply.refused is not None:
        if reply.decoded is not None or reply.refused not in _REASONS:
            raise Nonsense
        return Refused(_REASONS[reply.refused])
    if reply.decoded is None:
        raise Nonsense
    return _decoded(reply.decoded, role, rules, pixels)


def _decoded(
    said: _Decoded, role: Role, rules: Rules, pixels: Callable[[str, tuple[int, ...], int], NDArray[Any]]
) -> Decoded:
    if max(len(said.pictures), len(said.masks)) > rules.largest_frames:
        raise Nonsense
    if role == "identity" and (said.pictures or said.masks):
        raise Nonsense
    layouts = [(one.dtype, one.shape) for one in said.pictures] + [("uint8", one.shape) for one in said.masks]
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in layouts]
    if sum(sizes) > rules.memory_mib << 20:
        raise Nonsense
    for number, (dtype, shape) in enumerate(layouts):
        mask = role == "mask" or number >= len(said.pictures)
        flat, eight = len(shape) == 2, dtype == "uint8"
        if shape[0] * shape[1] > _ROUNDED * rules.largest_pixels:
            raise Nonsense
        if not (flat or (shape[2] == 3 and eight)) or (mask and not (flat and eight)):
            raise Nonsense
    starts = [0, *accumulate(sizes)]
    arrays = [pixels(dtype, shape, start) for (dtype, shape), start in zip(layouts, starts, strict=False)]
    if any(array.max() > 1 for array in arrays[0 if role == "mask" else len(said.pictures) :]):
        raise Nonsense
    pictures = tuple(
        Picture(array, one.number, allowed_attributes(one.attributes), one.labels, one.scale)
        for array, one in zip(arrays, said.pictures, strict=False)
    )
    masks = tuple(
        MaskOf(one.sop, one.frame, one.segment, array)
        for array, one in zip(arrays[len(pictures) :], said.masks, strict=True)
    )
    return Decoded(Identity(**said.identity.model_dump()), pictures, masks, said.warnings)
