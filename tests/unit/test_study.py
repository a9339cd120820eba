"""The study file: what it accepts, every message it refuses with, and the stability of its hash."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from common import strict_yaml
from common import study as study_module
from common.errors import StudyError
from common.frozen_dict import FrozenDict
from common.study import MODELS, SEGMENTERS, STRATEGIES, DataSpec, Study, schema

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXAMPLES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name not in {"policy.yaml", "search.yaml"})
SMALLEST = "name: smallest\ntask: binary\nclasses: [normal, pneumonia]\n"


def parse(extra: str = "", base: str = SMALLEST) -> Study:
    return Study.parse(base + extra, "here.yaml")


def refusal(extra: str = "", base: str = SMALLEST) -> str:
    with pytest.raises(StudyError) as caught:
        parse(extra, base)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("here.yaml")
    return text


def task(name: str, classes: str) -> str:
    return f"name: x\ntask: {name}\nclasses: {classes}\n"


# --- what every message must say: file, key, what is wrong, remedy ---


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("federation: {roundz: 3}", "here.yaml: federation.roundz: unknown key; did you mean 'rounds'?"),
        ("trianing: {}", "here.yaml: trianing: unknown key; did you mean 'training'?"),
        (
            "training: {optimiser: {learning: 1}}",
            "here.yaml: training.optimiser.learning: unknown key; known here: name, lr",
        ),
        (
            "preprocess: {window: {center: 4, width: 3}}",
            "here.yaml: preprocess.window.centre: missing; add it; "
            "preprocess.window.center: unknown key; did you mean 'centre'?",
        ),
        ("federation: {rounds: 0}", "federation.rounds: must be greater than 0, got 0"),
        ("federation: {rounds: true}", "federation.rounds: must be a valid integer, got true; write a whole number"),
        (
            "federation: {rounds: '3'}",
            "federation.rounds: must be a valid integer, got '3'; write a whole number, without quotes",
        ),
        ("federation: {rounds: 3.5}", "federation.rounds: must be a valid integer"),
        ("federation: {rounds: }", "federation.rounds: must be a valid integer, got null"),
        ("federation: {quorum: 0.0}", "federation.quorum: must be greater than 0"),
        ("federation: {quorum: 80}", "federation.quorum: must be less than or equal to 1, got 80"),
        ("federation: {deadline_s: soon}", "federation.deadline_s: must be a valid number, got 'soon'; write a number"),
        (
            "federation: {evaluate_every: 0, keep: best}",
            "federation: early_stopping and keep: best need evaluate_every ≥ 1",
        ),
        (
            "federation: {strategy: {name: fedavgg}}",
            "federation.strategy.name: unknown name 'fedavgg'; did you mean 'fedavg'? "
            "(others are installed as entry points of group 'fedward.strategies')",
        ),
        ("federation: {strategy: {name: zzz}}", "unknown name 'zzz'; known: fedavg, fedavgm"),
        ("federation: 3", "federation: must be an object, got 3; indent its keys below it"),
        ("federation: {early_stopping: {}}", "federation.early_stopping.patience: missing; add it"),
        ("model: {name: resnet19}", "model.name: unknown name 'resnet19'; did you mean 'resnet18'?"),
        ("model: {norm: bathc}", "model.norm: 'bathc' is not known here; did you mean 'batch'?"),
        ("model: {dropout: 1.0}", "model.dropout: must be less than 1"),
        ("model: {weights: ''}", "model.weights: must have at least 1 character"),
        ("model: {params: {a: [x]}}", "model.params.a: a list may hold whole numbers only"),
        ("model: {params: {a: {b: 1}}}", "model.params.a: must be a number, a text, true, false or a list"),
        ("model: {params: {a: .inf}}", "model.params.a: must be a finite number"),
        ("model: {params: {a: null}}", "model.params.a: must be a number, a text"),
        (
            "training: {optimiser: {name: adm}}",
            "training.optimiser.name: 'adm' is not known here; did you mean 'adam'?",
        ),
        ("training: {optimiser: {lr: .nan}}", "training.optimiser.lr: must be a finite number, got nan"),
        ("training: {optimiser: {lr: .inf}}", "training.optimiser.lr: must be a finite number, got inf"),
        ("training: {local_epochs: 1, local_steps: 5}", "training: give local_epochs or local_steps, not both"),
        ("training: {batch_size: 8, microbatch: 16}", "training: microbatch 16 must not exceed batch_size 8"),
        (
            "data: {split: [0.5, 0.5, 0.5]}",
            "data.split: must be three positive fractions (train, val, test) that sum to 1",
        ),
        ("data: {split: [0.5, 0.5, 0.0]}", "data.split: must be three positive fractions"),
        ("data: {split: [0.5, 0.5]}", "data.split.2: missing; add it"),
        ("data: {label_column: ''}", "data.label_column: must have at least 1 character"),
        ("data: {label_column: 3}", "data.label_column: must be a valid string, got 3; put it in quotes"),
        ("data: {other: [true]}", "data.other.0: true is not text in YAML; put it in quotes: 'true'"),
        ("data: {other: [1.50]}", "data.other.0: must be text; put 1.5 in quotes, as it stands in the label sheet"),
        ("data: {other: [a|b]}", "data.other.0: 'a|b' cannot be a label"),
        ("data: {uncertain: normal}", "classes.normal: label 'normal' stands in data.uncertain too; keep one of them"),
        ("data: {other: unknown}", "data.other: label 'unknown' stands in data.uncertain too; keep one of them"),
        ("image: {channels: 2}", "image.channels: 2 is not known here; one of: 1, 3"),
        ("image: {sequences: [T1, T2, diffusion]}", "got 3 names and channels: 1"),
        ("image: {channels: 3, sequences: [T1, T2]}", "image: sequences names three different ones"),
        ("image: {channels: 3, sequences: [T1, T2, T1]}", "image: sequences names three different ones"),
        ("model: {frozen: [conv1]}", "model: frozen needs weights"),
        ("image: {size: 4}", "image.size: must be greater than or equal to 8, got 4"),
        ("partition: {kind: natural}", "partition: kind: natural needs a column: (site, view, …)"),
        ("partition: {column: view}", "partition: kind: natural needs a column:"),
        ("partition: {kind: device}", "partition: kind: device needs device_shift: above 0, for example 0.5"),
        (
            "partition: {kind: pathological, classes_per_site: 3}",
            "partition.classes_per_site: 3 of only 2 classes; lower it",
        ),
        (
            "evaluation: {threshold: {rule: sensitivity}}",
            "evaluation.threshold: rule: sensitivity needs a sensitivity: value",
        ),
        (
            "evaluation: {threshold: {sensitivity: 0.9}}",
            "rule: sensitivity needs a sensitivity: value, and only that rule takes one",
        ),
        (
            "augment: {flip_horizontal: yes}",
            "augment.flip_horizontal: must be a valid boolean, got 'yes'; write true or false",
        ),
        ("governance: {expires: 2027}", "governance.expires: must be a date as YYYY-MM-DD, got 2027"),
        ("governance: {expires: 2027-02-30}", "governance.expires: must be a date as YYYY-MM-DD, got '2027-02-30'"),
        (
            "governance: {ethics_reference: 2024}",
            "governance.ethics_reference: must be a valid string, got 2024; put it in quotes",
        ),
        ("seed: -1", "seed: must be greater than or equal to 0, got -1"),
        (f"seed: {1 << 53}", "seed: must be less than 9007199254740992"),
        (f"seed: {'9' * 300}", "seed: must be less than 9007199254740992, got 9999"),
        ('data: {"a\\nb\\x07": 1}', "data.a\\nb\\x07: unknown key"),
        ('description: "\\ud800"', "here.yaml: a text holds half a character"),
    ],
)
def test_a_refusal_names_key_and_remedy(extra: str, message: str) -> None:
    assert message in refusal(extra)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("", "a study is a mapping of keys, this is empty; see configs/quickstart.yaml"),
        ("[1, 2]", "a study is a mapping of keys, this is a list"),
        ("just words", "a study is a mapping of keys, this is a str"),
        ("name: x\n", "task: missing; add it; classes: missing; add it"),
        (task("binry", "[a, b]"), "task: 'binry' is not known here; did you mean 'binary'?"),
        (
            task("binary", "[a, b, c]"),
            "classes: task binary needs exactly two classes (the second is the positive one), got 3",
        ),
        (
            task("multiclass", "[a, b]"),
            "classes: task multiclass needs at least three classes, got 2; two classes are task: binary",
        ),
        (task("multilabel", "[]"), "classes: a study has 1 to 1000 classes, got 0"),
        (task("multilabel", "{}"), "classes: a study has 1 to 1000 classes, got 0"),
        (task("binary", "[a, a]"), "classes: a class is named twice; name each once"),
        (task("binary", "normal"), "classes: must be a list of classes or a map of each class to its labels"),
        (task("binary", "{a: [], b: c}"), "classes: class 'a' has no label; give at least one, for example a: [a]"),
        (task("binary", "{a: [x, y], b: [y]}"), "classes.b: label 'y' stands in classes.a too; keep one of them"),
        (task("binary", "{a: [true], b: c}"), "classes.a.0: true is not text in YAML; put it in quotes: 'true'"),
        (task("binary", "{a: [~], b: c}"), "classes.a.0: null is not text in YAML; put it in quotes: 'null'"),
        (task("binary", "[true, false]"), "classes: true is not text in YAML; put it in quotes: 'true'"),
        (
            task("binary", "{true: a, false: b}"),
            "here.yaml:3:11: not valid YAML: a key must be plain text, put it in quotes",
        ),
        (task("binary", "[' a', b]"), "classes: ' a' cannot be a label; give 1 to 100 printable characters"),
        (task("binary", '["a\\n", b]'), "cannot be a label"),
        (
            task("segmentation", "[a]"),
            "model.name: cnn classifies whole images; segmentation needs unet, or a model installed",
        ),
        ("name: ../x\ntask: binary\nclasses: [a, b]", "name: must match pattern"),
    ],
)
def test_a_refusal_of_task_classes_or_name(base: str, message: str) -> None:
    assert message in refusal(base=base)


def test_many_findings_are_summed_up() -> None:
    text = refusal("\n".join(f"zz{number}: 1" for number in range(40)))
    assert text.endswith("and 35 more of this kind")
    assert len(text) < 2000


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(refusal(f"seed: {'x' * 100_000}")) < 200
    assert len(refusal(f"{'k' * 100_000}: 1")) < 1000


# --- YAML itself ---


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("name: [", "here.yaml:1:8: not valid YAML: expected the node content"),
        (
            "name: x\n\ttask: binary",
            "here.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token; fix that line",
        ),
        ("name: x\nname: y\n", "here.yaml:2:1: not valid YAML: key 'name' is given twice; fix that line"),
        ("data: {a: 1, 'a': 2}", "here.yaml:1:14: not valid YAML: key 'a' is given twice"),
        ("1: a\n'1': b", "key '1' is given twice"),
        (
            "a: &bomb [x, x]\nb: [*bomb, *bomb]",
            "here.yaml:2:5: not valid YAML: aliases (*name) are not allowed, write the value out",
        ),
        ("a: &a {b: 1}\nc:\n  <<: *a", "aliases (*name) are not allowed"),
        (
            "name: !!python/object/apply:os.system ['true']",
            "tags (tag:yaml.org,2002:python/object/apply:os.system) are not allowed",
        ),
        ("name: !!binary aGk=", "tags (tag:yaml.org,2002:binary) are not allowed"),
        ("name: ! x", "tags (!) are not allowed"),
        ("name: !a%0Ab x", "tags (!a\\nb) are not allowed"),
        ("? [1]\n: 2", "a key must be plain text"),
        ("null: 2", "a key must be plain text, put it in quotes"),
        ("1.5: 2", "a key must be plain text, put it in quotes"),
        ("a: 1\n---\nb: 1", "expected a single document in the stream, but found another document"),
        ("a: \x00", "not valid YAML: unacceptable character #x0000"),
        ("a: " + "[" * 100_000, "nested more than 12 levels deep"),
        ("{" * 100_000, "nested more than 12 levels deep"),
        ('{"a":' * 100_000, "nested more than 12 levels deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than 12 levels deep; flatten it"),
        ("seed: " + "9" * 5000, "a number of 5000 digits is too long"),
        ('{"seed": ' + "9" * 5000 + "}", "a number of 5000 digits is too long; shorten it"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice; keep one"),
        ('{"a": NaN}', "NaN is not a number that a study can hold; give a finite one"),
        ("a: " + "x" * (1 << 20), "longer than 1 MiB; a study takes a few kilobytes"),
    ],
)
def test_yaml_is_read_strictly(base: str, message: str) -> None:
    assert message in refusal(base=base)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("N", "N"),  # booleans in YAML 1.1
        ("0", "0"), ("1", "1"), ("-2", "-2"), ("007", "007"), ("+1", "+1"), ("1_000", "1_000"), ("0x10", "0x10"),
        ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("'true'", "true"), ("'1.50'", "1.50"), ("é ü", "é ü"),
    ],
)  # fmt: skip
def test_a_label_is_the_text_as_written(written: str, meant: str) -> None:
    assert parse(base=task("binary", f"[{written}, pneumonia]")).class_names == (meant, "pneumonia")
    assert parse(base=task("binary", f"{{a: [{written}], b: c}}")).classes["a"] == (meant,)
    assert parse(base=task("binary", f"{{a: {written}, b: c}}")).classes["a"] == (meant,)
    assert parse(f"data: {{other: [{written}]}}").data.other == (meant,)


@pytest.mark.parametrize(("written", "value"), [("1e-9", 1e-9), ("1E+3", 1000.0), ("5", 5.0), (".5", 0.5), ("2.", 2.0)])
def test_numbers_are_read_as_yaml_1_2_has_them(written: str, value: float) -> None:
    assert parse(f"training: {{optimiser: {{lr: {written}}}}}").training.optimiser.lr == value
    parameter = parse(f"federation: {{strategy: {{name: fedadam, params: {{tau: {written}}}}}}}")
    assert parameter.federation.strategy.params["tau"] == value
    assert not isinstance(parameter.federation.strategy.params["tau"], str)


# --- files ---


def test_load_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(StudyError, match=r"none\.yaml: no such study file; `fedward study schema`"):
        Study.load(missing)
    with pytest.raises(StudyError, match=r": cannot be read: Is a directory; check the path"):
        Study.load(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(SMALLEST.encode() + "description: Gefäß".encode("latin-1"))
    with pytest.raises(StudyError, match=r"latin\.yaml: byte \d+ is not UTF-8 text; save the file as UTF-8"):
        Study.load(latin)
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\ntask: [")
    with pytest.raises(StudyError, match=r"broken\.yaml:2:8: not valid YAML"):
        Study.load(broken)


def test_load_reads_no_more_than_a_study_can_be() -> None:
    with pytest.raises(StudyError, match=r"longer than 1 MiB"):
        Study.load(Path("/dev/zero"))


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert Study.load(path) == parse()


# --- meaning ---


def test_a_list_of_classes_is_short_for_a_map() -> None:
    long = parse(base=task("binary", "{normal: [normal], pneumonia: [pneumonia]}"))
    assert long == parse(base=task("binary", "[normal, pneumonia]"))
    assert long.hash == parse(base=task("binary", "[normal, pneumonia]")).hash


def test_the_order_of_classes_is_kept_and_counts() -> None:
    one = parse(base=task("multiclass", "[b, a, c]"))
    other = parse(base=task("multiclass", "[a, b, c]"))
    assert one.class_names == ("b", "a", "c")
    assert one != other
    assert one.hash != other.hash


def test_the_order_of_parameters_does_not_count() -> None:
    one = parse("model: {params: {kernel: 3, hidden: [64]}}")
    other = parse("model: {params: {hidden: [64], kernel: 3}}")
    assert one == other
    assert one.hash == other.hash
    assert one.model.params["hidden"] == (64,)


def test_outputs_of_the_tasks() -> None:
    assert parse(base=task("binary", "[a, b]")).outputs == 1
    assert parse(base=task("multiclass", "[a, b, c]")).outputs == 3
    assert parse(base=task("multilabel", "[a]")).outputs == 1
    assert parse(base=task("multilabel", "[a, b]")).outputs == 2


def test_length_of_a_local_fit() -> None:
    assert parse().training.epochs == 1
    assert parse("training: {local_epochs: 3}").training.epochs == 3
    assert parse("training: {local_steps: 3}").training.epochs is None


def test_an_expiry_date_in_the_past_is_for_the_site_to_judge() -> None:
    assert parse("governance: {expires: 2001-01-31}").governance.expires == dt.date(2001, 1, 31)
    assert parse("governance: {expires: null}").governance.expires is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_known(name: str) -> None:
    assert parse(f"federation: {{strategy: {{name: {name}}}}}").federation.strategy.name == name


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_known(name: str) -> None:
    base = task("segmentation", "[a]") if name in SEGMENTERS else SMALLEST
    assert parse(f"model: {{name: {name}}}", base).model.name == name


def test_an_installed_entry_point_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedward.models]\nunet-of-mine = mine:build\n")
    assert "unknown name 'unet-of-mine'" in refusal("model: {name: unet-of-mine}")
    monkeypatch.syspath_prepend(tmp_path)
    assert parse("model: {name: unet-of-mine}").model.name == "unet-of-mine"
    assert "did you mean 'unet-of-mine'?" in refusal("model: {name: unet-of-mind}")
    assert parse("model: {name: unet-of-mine}", task("segmentation", "[lung]")).task == "segmentation"


# --- frozen ---


def test_a_study_is_frozen_all_the_way_down() -> None:
    study = parse("model: {params: {kernel: 3}}")
    with pytest.raises(ValidationError, match="frozen"):
        study.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        study.federation.rounds = 3  # type: ignore[misc]
    classes: Any = study.classes
    params: Any = study.model.params
    empty: Any = parse().federation.strategy.params
    for mapping in (classes, params, empty):
        for change in (
            lambda m: m.__setitem__("x", 1), lambda m: m.__delitem__("x"), lambda m: m.update(x=1),
            lambda m: m.pop("x"), lambda m: m.popitem(), lambda m: m.clear(), lambda m: m.setdefault("x", 1),
            lambda m: m.__ior__({"x": 1}),
        ):  # fmt: skip
            before = dict(mapping)
            with pytest.raises(TypeError, match=r"a study cannot be changed; Study\.derive makes a changed copy"):
                change(mapping)
            assert dict(mapping) == before


def test_a_study_is_hashable_and_survives_pickle_and_copy() -> None:
    study = parse("model: {params: {hidden: [64, 32]}}")
    for twin in (pickle.loads(pickle.dumps(study)), copy.copy(study), copy.deepcopy(study)):
        assert twin == study
        assert twin.hash == study.hash
        assert hash(twin) == hash(study)
        assert isinstance(twin.classes, FrozenDict)


def test_a_frozen_dict_keeps_the_order_of_its_items() -> None:
    one, other = FrozenDict({"a": 1, "b": 2}), FrozenDict({"b": 2, "a": 1})
    assert one != other
    assert one == {"a": 1, "b": 2}
    assert one != [("a", 1)]
    assert FrozenDict.sorted(other.items()) == one
    assert json.loads(json.dumps(one)) == dict(one)


# --- canonical form and hash ---


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_canonical_round_trip_of_the_examples(path: Path) -> None:
    study = Study.load(path)
    twin = Study.parse(study.canonical().decode())
    assert twin == study
    assert twin.hash == study.hash
    assert study.governance.purpose
    assert study.governance.contact
    assert study.name == path.stem


@pytest.mark.parametrize(
    "text", ["\u2028", "\x7f", "\x85", "\ufeff", "😀", '"\\/', "a\r\nb\tc", "\x01", "# no: comment"]
)
def test_any_text_survives_the_canonical_form(text: str) -> None:
    study = parse().derive(description=text)
    assert study.description == text
    assert Study.parse(study.canonical().decode()) == study


GOLDEN = """\
name: golden
task: multiclass
classes: {normal: [normal], bacteria: [bacteria, mixed], virus: virus}
seed: 7
data: {label_column: finding, split: [0.8, 0.1, 0.1]}
model: {name: cnn, norm: batch, params: {hidden: [32], kernel: 3}}
training: {optimiser: {name: adamw, lr: 1e-4, weight_decay: 0.01}, local_steps: 20}
federation: {rounds: 3, strategy: {name: fedadam, params: {tau: 1e-9}}}
governance: {purpose: "a fixed hash", expires: 2030-01-01}
"""


def test_the_hash_of_a_fixed_study_is_fixed() -> None:
    """Hospitals approve hashes: a change of this one voids every approval, so it needs a decision of its own."""
    assert Study.parse(GOLDEN).hash == "aa05d5a500ede51ef189a7293cfc049a12bf920b4dd04533783b1bfa32c3a56e"


def test_the_hash_does_not_depend_on_how_it_is_written() -> None:
    rewritten = yaml.safe_dump(json.loads(Study.parse(GOLDEN).canonical()), sort_keys=False, default_flow_style=False)
    assert Study.parse(rewritten).hash == Study.parse(GOLDEN).hash
    assert Study.parse(GOLDEN.replace("1e-4", "0.0001") + "# a comment\n").hash == Study.parse(GOLDEN).hash
    assert Study.parse(GOLDEN + "description: other\n").hash != Study.parse(GOLDEN).hash


# --- derive ---


def test_derive_changes_what_it_names_and_checks_anew() -> None:
    study = parse()
    derived = study.derive(**{"federation.rounds": 3, "seed": np.int64(5), "governance.expires": dt.date(2030, 1, 1)})
    assert (derived.federation.rounds, derived.seed) == (3, 5)
    assert derived.governance.expires == dt.date(2030, 1, 1)
    assert derived.derive(**{"federation.rounds": 10, "seed": 0, "governance.expires": None}) == study
    assert study.federation.rounds == 10
    assert study.derive(data=DataSpec(other=("x",))).data.other == ("x",)
    assert study.derive(**{"federation.early_stopping.patience": 4}).federation.early_stopping is not None


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("federation.rounds", 0, "study 'smallest' with federation.rounds: federation.rounds: must be greater than 0"),
        ("federatoin.rounds", 3, "federatoin: unknown key; did you mean 'federation'?"),
        ("seed.deeper", 3, "seed.deeper: seed is a single value; name a key of a mapping"),
        ("federation.strategy.name", "fedavgg", "did you mean 'fedavg'?"),
    ],
)
def test_derive_refuses_as_a_file_would(dotted: str, value: object, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse().derive(**{dotted: value})
    assert message in str(caught.value)


# --- schema ---


def test_the_schema_is_a_schema_and_accepts_the_examples() -> None:
    document = schema()
    jsonschema.Draft202012Validator.check_schema(document)
    validator = jsonschema.Draft202012Validator(document)
    for path in EXAMPLES:
        validator.validate(strict_yaml.load(path.read_text(encoding="utf-8")))
        validator.validate(json.loads(Study.load(path).canonical()))
    validator.validate({"name": "x", "task": "binary", "classes": ["normal", 1]})
    validator.validate({"name": "x", "task": "binary", "classes": {"normal": 0, "ill": [1, "2"]}})


@pytest.mark.parametrize("wrong", [{"roundz": 1}, {"federation": {"roundz": 1}}, {"task": "binry"}, {"seed": "x"},
                                   {"classes": 3}, {"model": {"params": {"a": {}}}}])  # fmt: skip
def test_the_schema_refuses_what_the_study_refuses(wrong: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    document = {"name": "x", "task": "binary", "classes": ["a", "b"]} | wrong
    assert not validator.is_valid(document)
    with pytest.raises(StudyError):
        Study.parse(json.dumps(document))


def test_every_key_of_a_study_stands_in_the_schema() -> None:
    definitions = schema()["$defs"]
    for name in study_module.__all__:
        part = getattr(study_module, name)
        if name.endswith(("Spec", "Window", "Stopping")):
            assert set(definitions[name]["properties"]) == set(part.model_fields)
            assert definitions[name]["additionalProperties"] is False
