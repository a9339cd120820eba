"""A hospital's own model as a package: what is in it, who vouches for it, and when there is none."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client import agent as agents
from client import delivery
from client.agent import Agent
from client.app import Resident
from client.evaluation import first_pass
from client.own_model import kept_weights
from client.personal import PERSONAL
from client.policy import POLICY_FILE
from common import protocol
from common.errors import IdentityError, PackageError
from common.identity import SiteKey
from common.metrics import FirstPass, choose_threshold
from common.models import build_initial
from common.package import CARD, MANIFEST, PARTS, SUMMARY, WEIGHTS, Manifest, OwnManifest, open_manifest
from common.study import Study
from common.weights import Weights, digest, load, state_of
from fedward import app
from server.results import read_card
from simulations.external import evaluate_run
from tests.unit import federation as fed
from tests.unit.test_agent import OURS, Site, refused
from tests.unit.test_delivery import Run

assert fed.TINY  # and Flower's task identity is set

QUICK = {"federation.rounds": 2, "federation.early_stopping": None}
METHODS = {
    "finetune": OURS.derive(personalisation={"method": "finetune", "epochs": 2, "lr": 0.003}, **QUICK),
    "ditto": OURS.derive(personalisation={"method": "ditto", "pull": 0.1}, **QUICK),
    "fedbn": OURS.derive(personalisation={"method": "fedbn"}, **QUICK, **{"model.norm": "group"}),
}


class Trained:
    """A site that has trained a study's rounds and told of its own model, and the run's package on its way."""

    def __init__(self, folder: Path, study: Study, images: int = 120) -> None:
        self.site, self.study = Site(folder, images=images), study
        self.site.survey(study)
        self.site.approve()
        self.site.weights = state_of(build_initial(study, 1, Path())[0])
        if study.personalisation is not None and study.personalisation.method != "finetune":
            for round_ in (1, 2):
                task = self.site.task(study, round=round_)
                assert isinstance(self.site.send(protocol.TrainRequest(task, self.site.weights)), protocol.TrainReply)
        own = 2 if study.personalisation is not None and study.personalisation.method == "ditto" else 1
        asked = protocol.EvaluateRequest(self.site.task(study, round=2), "val", self.site.weights, personal=own)
        self.told = self.site.send(asked)
        arm = {"rounds": 2, "kept_round": 1}
        self.run = Run(self.site, study=study, arm=arm)

    def deliver(self) -> protocol.Reply:
        return self.site.send(replace(self.run.request(), task=protocol.Task(self.study)))

    @property
    def home(self) -> Path:
        return self.site.home.directory

    @property
    def folder(self) -> Path:
        return self.home / "models" / f"{delivery.folder_of(self.study)}-own"

    def own(self) -> Weights:
        """What rounds left, before the study ends."""
        task = protocol.Task(self.study)
        with closing(Resident("cpu")) as resident:
            found = kept_weights(task, resident.site(self.home), self.site.weights, self._own_round)
        assert found is not None
        return found

    @property
    def _own_round(self) -> int:
        assert self.study.personalisation is not None
        return 2 if self.study.personalisation.method == "ditto" else 1


def typed(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output + str(result.exception or "")


@pytest.fixture(scope="module", params=METHODS)
def came(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trained, Weights]]:
    """A site to which the model has come, and what its own was before."""
    trained = Trained(tmp_path_factory.mktemp("own"), METHODS[request.param])
    own = trained.own()
    assert isinstance(trained.deliver(), protocol.Receipt)
    yield trained, own
    trained.site.agent.close()


def test_the_own_model_is_a_package_beside_that_of_all(came: tuple[Trained, Weights]) -> None:
    trained, own = came
    site, study, folder = trained.site, trained.study, trained.folder
    method = study.personalisation.method  # type: ignore[union-attr]
    assert {path.name for path in folder.iterdir()} == {*PARTS, MANIFEST}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert digest(load(folder / WEIGHTS)) == digest(own) != digest(site.weights)
    manifest, signer = open_manifest((folder / MANIFEST).read_bytes())
    assert isinstance(manifest, OwnManifest)
    assert (manifest.site, manifest.study, manifest.method) == ("north", study.hash, method)
    assert signer == SiteKey.load(site.agent.membership.key_path).public != site.coordinator.key.public
    shared = delivery.opened(folder.with_name(folder.name.removesuffix("-own")))
    assert manifest.made_from == shared.manifest.files[WEIGHTS].sha256
    # What rounds left is erased with the study, and the log has the package from before it was written.
    assert own and (site.home.state / PERSONAL).exists()
    with closing(Resident("cpu")) as resident:
        left = kept_weights(protocol.Task(study), resident.site(trained.home), site.weights, 1)
    assert left is None
    (made,) = site.events("own-model-made")
    assert made["weights"] == manifest.files[WEIGHTS].sha256 and made["key"] == signer.fingerprint
    # It comes again, as after a receipt that was lost: nothing is made twice.
    before = (folder / MANIFEST).read_bytes()
    assert isinstance(trained.deliver(), protocol.Receipt)
    assert (folder / MANIFEST).read_bytes() == before and len(site.events("own-model-made")) == 1


def test_its_thresholds_choice_and_result_are_its_own(came: tuple[Trained, Weights]) -> None:
    trained, own = came
    study, folder = trained.study, trained.folder
    summary, card = json.loads((folder / SUMMARY).read_bytes()), read_card(folder)
    told = trained.told
    assert isinstance(told, protocol.StatisticsReply)
    with closing(Resident("cpu")) as resident:  # not of what was told, where cells of few patients are merged
        scores = resident.scores(resident.site(trained.home), study, "val", own)
    counts = first_pass(scores, study).counts
    assert counts.images == FirstPass.from_arrays(told.statistics, study).counts.images
    assert card.thresholds.edges == pytest.approx(choose_threshold(counts, study.evaluation.threshold).edges)
    assert summary["thresholds"]["pneumonia"] == pytest.approx(card.thresholds.edges[0])
    assert summary["calibration"]["pneumonia"]["scaled"]["temperature"] > 0
    assert summary["synthetic"] and (summary["images"], summary["patients"]) == (24, 24)
    # What `fedward evaluate` measures with the package on the same test images.
    measured = evaluate_run(folder, trained.home)
    assert measured["test"] == summary["test"] and measured["test"]["auc"]["value"] is not None
    manifest, _ = open_manifest((folder / MANIFEST).read_bytes())
    assert isinstance(manifest, OwnManifest)
    page = (folder / "card.md").read_text()
    if study.personalisation.split:  # type: ignore[union-attr]
        assert manifest.chosen is summary["own"]["chosen"] is None and "test_of_all" not in summary["own"]
        assert "no model of all to choose" in page
    else:
        assert manifest.chosen == summary["own"]["chosen"] == told.chosen
        assert set(summary["own"]["test_of_all"]) == set(summary["test"])
        assert ("NOT chosen" in page) == (told.chosen == "global")
    assert "SYNTHETIC" in page and "north's own" in page and "not to be passed on" in page


def test_operators_see_whose_it_is_and_copy_it_on_record(came: tuple[Trained, Weights], tmp_path: Path) -> None:
    trained, _ = came
    code, text = typed("site", "models", "--verify", "--site", trained.home)
    assert code == 0, text
    assert f"own       models/{trained.folder.name}" in text
    assert "whose     north's own" in text and "nobody else has seen it" in text
    assert text.count("verified") == 2
    out = tmp_path / "copy"
    code, text = typed("site", "export-model", trained.folder.name, out, "--site", trained.home)
    assert code == 0 and "Do not let it leave the hospital" in text, text
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in trained.folder.iterdir()
    }
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert trained.site.events("model-exported")[-1] == {
        "study": trained.study.hash,
        "weights": delivery.opened(out).manifest.files[WEIGHTS].sha256,
        "own": True,
        "folder": str(out),
    }
    assert "exists already" in typed("site", "export-model", trained.folder.name, out, "--site", trained.home)[1]
    # By a study's hash the model of all is meant, as before there were others.
    assert delivery.find(trained.site.home, trained.study.hash[:12]).own is False


def test_what_was_altered_or_signed_by_another_is_not_verified(came: tuple[Trained, Weights], tmp_path: Path) -> None:
    trained, _ = came
    home, folder = trained.site.home, trained.folder
    whole = shutil.copytree(folder, tmp_path / "whole")
    delivery.verify(home, delivery.opened(whole))

    def broken(change: Any) -> str:
        copy = shutil.copytree(folder, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}")
        change(copy)
        with pytest.raises((PackageError, IdentityError)) as error:
            delivery.verify(home, delivery.opened(copy))
        return str(error.value)

    card = json.loads((folder / CARD).read_bytes())
    card["thresholds"] = {"pneumonia": 0.01}
    assert "is not the file that its hospital signed" in broken(lambda at: (at / CARD).write_text(json.dumps(card)))

    def signed(at: Path, key: SiteKey, **facts: Any) -> None:
        manifest = delivery.opened(at).manifest
        (at / MANIFEST).write_bytes(manifest.model_copy(update=facts).sign(key))

    assert "the audit log does not know" in broken(lambda at: signed(at, SiteKey.generate()))
    # This site's own key, used by whoever is on its machine: the log does not know such weights.
    key = SiteKey.load(trained.site.agent.membership.key_path)
    other = Run(trained.site, study=trained.study, arm={"rounds": 2, "kept_round": 1}).request()

    def exchanged(at: Path) -> None:
        (at / WEIGHTS).write_bytes(bytes(other.files[WEIGHTS]))
        manifest = delivery.opened(at).manifest
        files = {**manifest.files, WEIGHTS: Manifest.open(other.manifest)[0].files[WEIGHTS]}
        signed(at, key, files=files)

    assert "was not made by this site's agent" in broken(exchanged)
    # Nor is a coordinator's signature on an own model's manifest one of a model of all.
    with pytest.raises(IdentityError, match="own-model where a model-package belongs"):
        Manifest.open((folder / MANIFEST).read_bytes())


def test_where_nothing_of_ones_own_is_left_the_model_of_all_comes_alone(tmp_path: Path) -> None:
    trained = Trained(tmp_path, METHODS["finetune"], images=60)
    trained.site.agent.close()
    late = replace(trained.site.home, clock=lambda: datetime.now(UTC) + timedelta(days=400))
    trained.site.agent = Agent(late)  # its approval has run out, and what was kept is erased
    assert isinstance(trained.deliver(), protocol.Receipt)
    assert not trained.folder.exists() and trained.site.events("own-model-made") == []
    assert "own       none: nothing of it was left here" in typed("site", "models", "--site", trained.home)[1]
    trained.site.agent.close()


def test_a_kill_between_both_models_loses_neither_and_closed_hours_make_it_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As SIGKILL: nobody catches it."""

    trained = Trained(tmp_path, METHODS["ditto"], images=60)
    own = trained.own()
    with monkeypatch.context() as patched:
        patched.setattr(agents, "keep_own", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            trained.deliver()
    assert not trained.folder.exists() and trained.folder.with_name(trained.folder.name[:-4]).exists()
    policy = trained.home / POLICY_FILE
    text, hour = policy.read_text(), datetime.now().hour
    closed = text.replace("hours: null", f'hours: ["{(hour + 3) % 24:02}:00-{(hour + 4) % 24:02}:00"]')
    assert closed != text
    policy.write_text(closed)
    trained.site.agent.close()
    trained.site.agent = Agent(trained.site.home)
    assert refused(trained.deliver()) == "outside-hours"
    assert trained.site.events("study-finished") == [] and not trained.folder.exists()
    policy.write_text(text)
    assert isinstance(trained.deliver(), protocol.Receipt)
    assert digest(load(trained.folder / WEIGHTS)) == digest(own)
    trained.site.agent.close()


def test_a_coordinator_cannot_name_a_round_that_never_was(tmp_path: Path) -> None:
    trained = Trained(tmp_path, METHODS["ditto"], images=60)
    for nonsense in (3, 2**70, "2"):
        trained.run = Run(trained.site, study=trained.study, arm={"rounds": nonsense, "kept_round": 1})
        assert refused(trained.deliver()) == "model-refused", nonsense
        shutil.rmtree(trained.home / "models")
    assert not trained.folder.exists()
    trained.site.agent.close()
