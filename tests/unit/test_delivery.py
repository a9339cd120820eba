"""A finished model at a site: what is taken, what is refused, what stays, and what ends with it."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as encode
from typer.testing import CliRunner

from client import delivery
from client.agent import Agent
from client.app import Resident, handle
from client.replies import Replies
from common import protocol
from common.errors import ProtocolError, RunError
from common.identity import SiteKey
from common.package import MANIFEST, PARTS, SUMMARY, WEIGHTS, Manifest, Part
from common.study import Study
from common.weights import save
from fedward import app
from server.desk import RunFolder
from server.package import contents, package
from server.receipts import brought, receipts
from simulations.external import evaluate_run
from tests.unit import federation as fed
from tests.unit.test_agent import OURS, Site, refused

CELL = {"value": 0.9, "low": 0.8, "high": 0.95}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    assert fed.TINY  # and Flower's task identity is set
    made = Site(tmp_path)
    made.survey()
    made.approve()
    yield made
    made.agent.close()


class Run:
    """A finished run of the site's coordinator, and the package it makes."""

    def __init__(
        self,
        site: Site,
        sites: tuple[str, ...] = ("north", "south"),
        study: Study = OURS,
        arm: Mapping[str, Any] = {"rounds": 4, "kept_round": 3},
    ) -> None:
        self.site = site
        self.folder = RunFolder.launch(site.coordinator.runs, study, Path(), datetime(2027, 5, 1, tzinfo=UTC))
        facts = {**arm, "stopped_early": False, "thresholds": {"pneumonia": 0.5}, "roc": {}}
        facts |= {"test": {"auc": CELL}, "per_class": {"pneumonia": {"auc": CELL}}, "sites": {"south": "its own"}}
        self.put("results.json", {"study_hash": study.hash, "arms": {"federated": facts}})
        self.put(
            "model.json",
            {"study": json.loads(study.canonical()), "study_hash": study.hash, "thresholds": {"pneumonia": 0.5}},
        )
        save(site.weights, self.folder.path / WEIGHTS)
        self.folder.turn(
            "finished", datetime(2027, 5, 2, tzinfo=UTC), sites=list(sites), trained=list(sites), roster="0" * 64
        )

    def put(self, name: str, content: dict[str, Any]) -> None:
        (self.folder.path / name).write_text(json.dumps(content))

    def request(self, **changed: bytes) -> protocol.DeliveryRequest:
        """``changed``: part -> other content than the manifest's; dots are underscores."""
        _, signed = package(self.folder, self.site.coordinator)
        return asked(signed, contents(self.folder) | {name.replace("_", "."): new for name, new in changed.items()})

    def signed_anew(
        self, key: SiteKey | None = None, parts: dict[str, bytes] | None = None, **facts: Any
    ) -> protocol.DeliveryRequest:
        """A manifest that says something else, signed by the coordinator or by ``key``."""
        manifest, _ = package(self.folder, self.site.coordinator)
        files = contents(self.folder) | (parts or {})
        listed = {name: Part.of(content) for name, content in files.items()}
        made = Manifest(**{**dict(manifest), "files": listed, **facts})
        return asked(made.sign(key or self.site.coordinator.key), files)


def asked(signed: bytes, files: dict[str, bytes], study: Study = OURS) -> protocol.DeliveryRequest:
    arrays = {name: np.frombuffer(content, np.uint8) for name, content in files.items()}
    return protocol.DeliveryRequest(protocol.Task(study), signed, arrays)


def test_a_model_is_kept_whole_once_and_the_study_ends(site: Site) -> None:
    run = Run(site)
    assert isinstance(site.train(), protocol.TrainReply)
    request = run.request()
    reply = site.send(request)
    assert reply == protocol.Receipt("north", Part.of((run.folder.path / WEIGHTS).read_bytes()).sha256)
    (model,) = delivery.received(site.home)
    assert isinstance(model, delivery.Received)
    assert model.folder.name == f"tiny-{OURS.hash[:12]}"
    assert {path.name for path in model.folder.iterdir()} == {*PARTS, MANIFEST}
    assert all(
        (model.folder / name).read_bytes() == (run.folder.path / name).read_bytes() for name in (*PARTS, MANIFEST)
    )
    assert {stat.S_IMODE(path.stat().st_mode) for path in model.folder.iterdir()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (model.folder, model.folder.parent)} == {0o700}
    delivery.verify(site.home, model)
    assert "sites" not in model.summary, "another site's own result is not for this one"
    # Its replies are gone, and nothing more of it is answered, whatever the coordinator asks.
    with site.home.vault(read_only=True) as vault:
        replies = Replies(site.home.state / "replies.sqlite", vault)
        assert replies.studies() == []
        assert replies.spent(OURS.hash, "federated", 0, 1) is not None
        replies.close()
    assert site.events("replies-erased") == [{"study": OURS.hash, "replies": 1}]
    assert refused(site.survey()) == refused(site.train(2)) == "study-finished"
    # Again: the same receipt, nothing written, nothing more on record.
    inode = model.folder.stat().st_ino, (model.folder / WEIGHTS).stat().st_mtime_ns
    assert site.send(request) == reply
    assert (model.folder.stat().st_ino, (model.folder / WEIGHTS).stat().st_mtime_ns) == inode
    assert len(site.events("model-received")) == len(site.events("study-finished")) == 1
    # The package is the same at every call: a coordinator that was killed signs nothing twice.
    assert package(run.folder, site.coordinator)[1] == request.manifest


def test_a_half_written_model_is_swept_and_comes_again(site: Site) -> None:
    request = Run(site).request()
    half = site.home.directory / "models" / ".tiny.new-dead"
    half.mkdir(parents=True)
    (half / WEIGHTS).write_bytes(b"half")
    assert isinstance(site.send(request), protocol.Receipt)
    assert not half.exists()
    shutil.rmtree(site.home.directory / "models")  # lost later: the coordinator's copy may come again
    assert isinstance(site.send(request), protocol.Receipt)


def hostile() -> dict[str, Callable[[Run], protocol.DeliveryRequest]]:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    def weights(run: Run, **changes: Any) -> protocol.DeliveryRequest:
        made = {name: changes.get(name, value) for name, value in run.site.weights.items()}
        return run.signed_anew(parts={WEIGHTS: encode(made)})

    return {
        "altered weights": lambda run: run.request(model_safetensors=b"\0" * 100),
        "altered card": lambda run: run.request(card_md=b"# better\n"),
        "signed by another": lambda run: run.signed_anew(SiteKey.generate()),
        "not signed": lambda run: replace(run.request(), manifest=b"{}\n"),
        "another kind of paper": lambda run: replace(run.request(), manifest=run.site.coordinator.signed_roster),
        "another study's": lambda run: run.signed_anew(study="1" * 64),
        "another federation's": lambda run: run.signed_anew(federation="other"),
        "others' only": lambda run: run.signed_anew(sites=("south",)),
        "a pickle": lambda run: run.signed_anew(parts={WEIGHTS: pickle.dumps(Evil())}),
        "not a number": lambda run: weights(run, **{named(run): np.full_like(run.site.weights[named(run)], np.nan)}),
        "another shape": lambda run: weights(run, **{named(run): np.zeros((3, 3), np.float32)}),
        "too large": lambda run: run.signed_anew(parts={SUMMARY: b" " * (5 << 20)}),
        "a huge file": lambda run: run.signed_anew(parts={WEIGHTS: b" " * (3 << 20)}),
        "nested": lambda run: run.signed_anew(parts={SUMMARY: b"[" * 100_000}),
        "another's summary": lambda run: run.signed_anew(parts={SUMMARY: b"{}"}),
        "one file more": lambda run: run.signed_anew(parts={"../evil.py": b"print()"}),
    }


def named(run: Run) -> str:
    return next(name for name, value in run.site.weights.items() if value.dtype == np.float32)


def test_what_the_coordinator_did_not_sign_for_this_study_is_refused(site: Site) -> None:
    run = Run(site)
    for what, make in hostile().items():
        assert refused(site.send(make(run))) == "model-refused", what
        assert not (site.home.directory / "models").exists(), what
    assert site.events("model-received") == []
    assert isinstance(site.send(run.request()), protocol.Receipt)
    other = run.signed_anew(parts={"card.md": b"# another model of the same study\n"})
    assert refused(site.send(other)) == "model-refused"
    assert (
        next((site.home.directory / "models").iterdir()) / "card.md"
    ).read_bytes() != b"# another model of the same study\n"


def test_only_a_study_that_its_people_let_work_brings_a_model(site: Site) -> None:
    run = Run(site)
    request = run.request()
    other = OURS.derive(**{"federation.rounds": 5})
    assert refused(site.send(replace(request, task=protocol.Task(other)))) == "approval-pending"
    site.decide(lambda found: found.pause(by="Ann"))
    assert refused(site.send(request)) == "site-paused"
    site.decide(lambda found: found.resume(by="Ann"))
    site.decide(lambda found: found.withdraw(found.records()[-1], by="Ann"))
    assert refused(site.send(request)) == "study-withdrawn"
    assert site.events("model-received") == []


def test_an_approval_that_ran_out_since_is_enough(site: Site) -> None:
    """Nor does it matter that the agent's replies of the study were erased when that was seen."""
    request = Run(site).request()
    assert isinstance(site.train(), protocol.TrainReply)
    site.agent.close()
    late = replace(site.home, clock=lambda: datetime.now(UTC) + timedelta(days=400))
    site.agent = Agent(late)
    assert site.events("replies-erased") == [{"study": OURS.hash, "replies": 1}], "erased at the start"
    assert refused(site.train()) == "study-expired"
    assert isinstance(site.send(request), protocol.Receipt)


def test_the_listing_says_what_the_card_says_and_verify_finds_a_changed_byte(site: Site) -> None:
    def typed(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["site", "models", *options, "--site", str(site.home.directory)])
        return result.exit_code, result.output + str(result.exception or "")

    assert "no finished model has come yet" in typed()[1]
    run = Run(site)
    site.send(run.request())
    code, text = typed("--verify")
    assert code == 0
    for said in (OURS.hash, "auc 0.900 [0.800, 0.950]", "threshold pneumonia from 0.5000", "north, south", "verified"):
        assert said in text
    assert json.loads(typed("--json")[1])["models"][0]["summary"]["thresholds"] == {"pneumonia": 0.5}
    (folder,) = (site.home.directory / "models").iterdir()
    (folder / "card.md").write_bytes(b"# no limits\n")
    code, text = typed("--verify")
    assert code != 0
    assert "PROBLEM" in text
    # Whole, but of another coordinator: the log does not know that key.
    forged = run.signed_anew(SiteKey.generate())
    for name, content in forged.files.items():
        (folder / name).write_bytes(content.tobytes())
    (folder / MANIFEST).write_bytes(forged.manifest)
    assert "the audit log does not know" in typed("--verify")[1]


def test_a_brought_model_is_tested_on_the_sites_own_test_split(site: Site) -> None:
    site.send(Run(site).request())
    (folder,) = (site.home.directory / "models").iterdir()
    found = evaluate_run(folder, site.home.directory)
    assert (found["source"], found["images"]) == ("the test split of north", 24)
    assert found["test"]["auc"]["value"] is not None


def test_a_delivery_travels_and_a_receipt_comes_back(site: Site) -> None:
    run = Run(site)
    request = run.request()
    opened = protocol.open_request(site.message(request))
    assert isinstance(opened, protocol.DeliveryRequest)
    assert opened.manifest == request.manifest
    assert {name: bytes(file) for name, file in opened.files.items()} == {
        name: bytes(f) for name, f in request.files.items()
    }
    sealed = protocol.seal(replace(request, files={"card.md": np.zeros((2, 2), np.uint8)}))
    with pytest.raises(ProtocolError, match="row of bytes"):
        protocol.open_request(sealed.to(1, 60.0))
    message = site.message(request)
    with pytest.raises(ProtocolError, match="without a digest"):
        protocol.open_reply(protocol.answer(protocol.Receipt("north", "x"), message))
    receipt = protocol.Receipt("north", "a" * 64)
    assert protocol.open_reply(protocol.answer(receipt, message)) == receipt


def test_status_knows_who_has_it_and_a_damaged_list_is_named(site: Site) -> None:
    folder = Run(site, ("east", "north", "south", "west")).folder
    assert brought(folder, frozenset({"east", "north", "south"})) == {
        "east": "not yet", "north": "not yet", "south": "not yet", "west": "revoked"
    }  # fmt: skip
    one = {"at": "2027-05-02T00:00:00+00:00"}
    kept = {
        "east": {"state": "delivered", **one},
        "north": {"state": "waiting", "answer": "site-paused", **one},
        "south": {"state": "withdrawn", "answer": "study-withdrawn", **one},
        "west": {"state": "delivered", **one},
    }
    (folder.path / "delivery.json").write_text(json.dumps(kept))
    assert brought(folder, frozenset({"east"})) == {
        "east": "delivered", "north": "revoked", "south": "withdrawn", "west": "delivered"
    }  # fmt: skip
    (folder.path / "delivery.json").write_text("{")
    with pytest.raises(RunError, match=r"delivery\.json is damaged"):
        receipts(folder)


def test_a_stock_node_says_that_it_takes_no_model(site: Site) -> None:
    message = site.message(Run(site).request())
    reply = handle(message, lambda: site.home.directory, Resident("cpu"))
    assert refused(protocol.open_reply(reply)) == "model-refused"
