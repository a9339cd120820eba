"""Laws of the study file: canonical form, hash, frozenness and total refusal hold for any study and any text."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import strict_yaml
from common.errors import StudyError
from common.labels import targets
from common.study import MODELS, STRATEGIES, Study
from common.study_outlines import SEGMENTERS

WORDS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"], exclude_characters="|"), min_size=1, max_size=12
)
WORDS = WORDS.filter(
    lambda word: word.isprintable() and word == word.strip() and word not in {"uncertain", "unknown", "-1"}
)
KEYS = st.text("abcdefgh_", min_size=1, max_size=8)
FLOATS = st.floats(1e-12, 1e12)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(10**18), 10**18), FLOATS, st.text(max_size=20), st.lists(st.integers(0, 999))
)


CLASSIFIERS = [name for name in MODELS if name not in SEGMENTERS]
NAMED = {"params": st.dictionaries(KEYS, SCALARS, max_size=4)}
"""What a model and a strategy have in common, apart from their name."""
PARTS = {
    "description": st.text(max_size=60),
    "seed": st.integers(0, (1 << 53) - 1),
    "image": st.fixed_dictionaries({"size": st.integers(8, 1024), "channels": st.sampled_from([1, 3])}),
    "augment": st.fixed_dictionaries({}, optional={"rotate_deg": st.floats(0, 180), "flip_horizontal": st.booleans()}),
    "model": st.fixed_dictionaries({"name": st.sampled_from(CLASSIFIERS), **NAMED}),
    "training": st.fixed_dictionaries(
        {"batch_size": st.integers(1, 512), "optimiser": st.fixed_dictionaries({"lr": FLOATS})},
        optional={"local_steps": st.integers(1, 10**9), "schedule": st.just({"kind": "cosine", "unit": "round"})},
    ),
    "federation": st.fixed_dictionaries(
        {"strategy": st.fixed_dictionaries({"name": st.sampled_from(STRATEGIES), **NAMED})},
        optional={
            "rounds": st.integers(1, 10**9),
            "early_stopping": st.fixed_dictionaries({"patience": st.integers(1, 99)}),
        },
    ),
    "governance": st.fixed_dictionaries(
        {"purpose": st.text(max_size=60), "expires": st.none() | st.dates(dt.date(1000, 1, 1)).map(str)}
    ),
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A study as a file has it, with any subset of its parts."""
    task = draw(st.sampled_from(["binary", "multiclass", "multilabel"]))
    low, high = {"binary": (2, 2), "multiclass": (3, 6), "multilabel": (1, 6)}[task]
    names = draw(st.lists(WORDS, min_size=low, max_size=high, unique=True))
    extra = draw(st.lists(WORDS, max_size=4, unique=True).filter(lambda words: not set(words) & set(names)))
    classes: dict[str, list[str]] = {name: [name] for name in names}
    for number, label in enumerate(extra):
        classes[names[number % len(names)]].append(label)
    document = {"name": draw(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}\Z")), "task": task, "classes": classes}
    for name in draw(st.sets(st.sampled_from(sorted(PARTS)))):
        document[name] = draw(PARTS[name])
    return document


def read(document: dict[str, Any]) -> Study:
    return Study.parse(json.dumps(document))


@given(documents())
def test_the_canonical_form_reads_back_as_the_same_study(document: dict[str, Any]) -> None:
    study = read(document)
    twin = Study.parse(study.canonical().decode())
    assert twin == study
    assert twin.canonical() == study.canonical()
    assert twin.hash == study.hash
    assert hash(twin) == hash(study)
    assert study.class_names == tuple(document["classes"])


class _Writer(yaml.SafeDumper):
    """A writer that quotes what our reader, with the rules of YAML 1.2, would not read as text."""

    yaml_implicit_resolvers = strict_yaml._Loader.yaml_implicit_resolvers


@given(documents())
def test_yaml_and_json_mean_the_same(document: dict[str, Any]) -> None:
    assert Study.parse(yaml.dump(document, Dumper=_Writer, sort_keys=False)) == read(document)


@given(documents(), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count_but_that_of_classes_does(document: dict[str, Any], random: Any) -> None:
    def shuffled(value: Any, name: str = "") -> Any:
        if not isinstance(value, dict):
            return value
        keys = list(value)
        if name != "classes":
            random.shuffle(keys)
        return {key: shuffled(value[key], key) for key in keys}

    assert read(shuffled(document)).hash == read(document).hash
    turned = document | {"classes": dict(reversed(document["classes"].items()))}
    assert (read(turned).hash == read(document).hash) is (len(document["classes"]) == 1)


@given(documents())
def test_a_study_survives_pickle_and_an_empty_derivation(document: dict[str, Any]) -> None:
    study = read(document)
    assert pickle.loads(pickle.dumps(study)) == study
    assert study.derive() == study
    assert study.derive(seed=3).derive(seed=study.seed) == study


@given(documents(), KEYS)
def test_an_unknown_key_anywhere_is_refused(document: dict[str, Any], key: str) -> None:
    study = read(document)
    raw = json.loads(study.canonical())
    for path in (
        (),
        ("data",),
        ("data", "phantoms"),
        ("training", "optimiser"),
        ("federation", "strategy"),
        ("evaluation",),
    ):
        twin = json.loads(json.dumps(raw))
        node = twin
        for step in path:
            node = node[step]
        if key in node:
            continue
        node[key] = 1
        with pytest.raises(StudyError, match="unknown key"):
            read(twin)


@settings(max_examples=200)
@given(st.text(max_size=200) | st.text("{}[]:,-#&*!|>'\"%@` \n\tab1?<", max_size=60))
@example("a: &a [*a]")
@example("%YAML 9.9\n---\na: 1")
@example("? ")
@example("\ufeff{")
@example("{\ufeff")
def test_any_text_gives_plain_data_or_one_line(text: str) -> None:
    try:
        data = strict_yaml.load(text)
    except strict_yaml.StrictYamlError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
    else:
        assert json.loads(json.dumps(data)) == data or "nan" in json.dumps(data).lower()
    with pytest.raises(StudyError) as caught:
        Study.parse(text, "here")
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(documents(), JSON, st.data())
def test_any_value_in_any_place_is_taken_or_refused_in_one_line(
    document: dict[str, Any], value: Any, data: st.DataObject
) -> None:
    raw = json.loads(read(document).canonical())
    node, key = raw, data.draw(st.sampled_from(sorted(raw)))
    while isinstance(node[key], dict) and node[key] and data.draw(st.booleans()):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node)))
    node[key] = value
    try:
        study = Study.parse(json.dumps(raw), "here")
    except StudyError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("here")
    else:
        assert Study.parse(study.canonical().decode()) == study


@given(documents(), st.data())
def test_every_label_lands_in_its_own_class(document: dict[str, Any], data: st.DataObject) -> None:
    study = read(document)
    pairs = [(index, label) for index, labels in enumerate(study.classes.values()) for label in labels]
    chosen = data.draw(st.lists(st.sampled_from([*pairs, (None, "unknown")]), max_size=20))
    found = targets(study, [{"label": (label,)} for _, label in chosen])
    assert found.shape == (len(chosen), len(study.classes))
    for row, (index, _) in zip(found, chosen, strict=True):
        if index is None:
            assert np.isnan(row).all()
        else:
            assert row.sum() == 1
            assert row[index] == 1
