"""Laws of stored views: number for number what the same view is in memory, whatever the vault and the study."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.vault.keys import create_key_file, provider
from client.vault.store import CODECS, Record, Vault
from client.vault.view import View, ViewCache, prepare_view
from common.study import Study

grey = st.tuples(st.integers(1, 40), st.integers(1, 40))
rgb = st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))


@st.composite
def records(draw: st.DrawFn, ct: bool) -> Record:
    """``ct``: grey of 16 bits, which a window takes."""
    dtype = np.dtype(draw(st.sampled_from(["uint16", "int16"] if ct else ["uint8", "uint16"])))
    shape = draw(grey if ct or dtype == np.uint16 else grey | rgb)
    # Smooth or noisy: JPEG-LS packs the one and leaves the other as it is.
    if draw(st.booleans()):
        pixels = np.broadcast_to(np.arange(shape[0], dtype=dtype).reshape(-1, *[1] * (len(shape) - 1)), shape).copy()
    else:
        pixels = draw(hnp.arrays(dtype, shape))
    return Record(
        pixels,
        patient=draw(st.sampled_from("abcdef")),
        labels=draw(st.sampled_from([{"label": ("x",)}, {"label": ("y",)}, {"label": ()}, {"label": ("unclear",)}])),
        split=draw(st.sampled_from(["", "train", "train", "train", "test"])),
        mask=draw(st.none() | hnp.arrays(np.uint8, shape[:2], elements=st.integers(0, 1))),
    )


@st.composite
def studies(draw: st.DrawFn) -> Study:
    window = draw(st.booleans())
    made = Study.model_validate(
        {
            "name": "law",
            "task": "binary",
            "classes": ["x", "y"],
            "data": {"uncertain": ["unclear"]},
            "image": {"size": draw(st.integers(8, 24)), "channels": draw(st.sampled_from([1, 3]))},
            "preprocess": {"window": {"centre": 40, "width": 400}}
            if window
            else {"equalise": draw(st.sampled_from(["none", "histogram", "clahe"]))},
        }
    )
    # No segmentation model is installed here; the view asks for the task only.
    return made.model_copy(update={"task": "segmentation"}) if draw(st.booleans()) else made


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_stored_view_is_the_view(data: st.DataObject) -> None:
    study = data.draw(studies())
    found = data.draw(st.lists(records(study.preprocess.window is not None), max_size=12))
    split = data.draw(st.sampled_from(["train", None]))
    with TemporaryDirectory() as folder:
        base = Path(folder)
        create_key_file(base / "key")
        with Vault.create(base / "vault", provider("file:key", base=base), synthetic=True, source="laws") as vault:
            vault.add(found, data.draw(st.sampled_from(CODECS)))
            held, stored = prepare_view(vault, study, split), ViewCache(0).get(vault, study, split)
            assert isinstance(stored, View) == (len(held) == 0)
            assert len(stored) == len(held)
            assert torch.equal(stored.targets, held.targets)
            assert torch.equal(stored.patients, held.patients)
            assert (stored.patient_count, stored.masked) == (held.patient_count, held.masked)
            asked = [torch.arange(len(held))]
            if len(held):
                asked.append(
                    torch.tensor(data.draw(st.lists(st.integers(0, len(held) - 1), max_size=20)), dtype=torch.int64)
                )
            for rows in asked:
                assert torch.equal(stored.floats(rows), held.floats(rows))
                mine, right = stored.masks_of(rows), held.masks_of(rows)
                assert (mine is None) == (right is None)
                assert mine is None or (right is not None and torch.equal(mine, right))
            again = ViewCache(0).get(vault, study, split)
            assert torch.equal(again.floats(asked[0]), held.floats(asked[0]))
