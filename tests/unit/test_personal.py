"""Models of a site's own: what defines each method, what never leaves, and what a kill does not change."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from numpy.typing import NDArray

from client.agent import Agent, identity_of
from client.app import Resident
from client.describe import _leaves as leaves
from client.describe_personal import personal_words
from client.own_model import finetune, kept_weights, own_weights
from client.personal import PERSONAL, Personal
from client.policy import TEMPLATE, Policy
from client.replies import Replies
from client.steering import Correction
from client.training import FitSeed, LocalFit
from common import protocol
from common.errors import ProtocolError, ReplyRefused, StudyError
from common.models import build
from common.personal import own_names
from common.randomness import seed_for
from common.study import Study
from common.variates import change
from common.weights import Weights, digest, save, state_of, trainable_names
from server.app import federate
from server.rounds import Arm
from server.variates import MeanVariate
from simulations.engine import InProcessGrid
from simulations.sites import roster_of
from tests.unit import federation as fed
from tests.unit.test_agent import OURS, Site
from tests.unit.test_rounds import NODES, SITES, comparable, kill_in_the_third_round, link_to, train, work

SGD = {"training.optimiser": {"name": "sgd", "lr": 0.1}}


def of(method: str, **changes: Any) -> Study:
    return fed.study(personalisation={"method": method}, **changes)


FEDBN, DITTO, FINETUNE = of("fedbn"), of("ditto"), of("finetune")
SCAFFOLD = of("scaffold", **SGD)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fed.make_sites(tmp_path_factory.mktemp("personal") / "sites", fed.study())


@pytest.fixture
def grid(homes: dict[str, Path]) -> Iterator[InProcessGrid]:
    with closing(InProcessGrid(list(homes.values()))) as made:
        yield made


def kept(grid: InProcessGrid, home: Path, study: Study, round_: int) -> Weights:
    """What a site has of its own after a round."""
    site = grid.resident.site(home)
    with closing(Personal(site.memory(PERSONAL), site.vaults[0])) as states:
        return states.before((study.hash, "federated", 0), round_ + 1)


def first_weights(study: Study) -> dict[str, NDArray[Any]]:
    return state_of(build(study, seed_for(study.seed, 0, "weights")))


def same(one: Weights, other: Weights, tolerance: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[n], other[n], 0.0, tolerance) for n in one)


# --- the study ------------------------------------------------------------------------------------------------------


def test_a_study_without_is_written_as_before() -> None:
    plain = fed.study()
    assert b"personalisation" not in plain.canonical()
    assert fed.study(personalisation=None).hash == plain.hash != DITTO.hash
    assert Study.parse(DITTO.canonical().decode()) == DITTO
    assert protocol.Task(DITTO).personal == DITTO.personalisation
    assert protocol.Task(DITTO, "pooled").personal is protocol.Task(DITTO, "local:site-1").personal is None


PRIVATE = {
    "privacy": {"noise_multiplier": 1.0, "sample_rate": 0.1, "delta": 1e-3},
    "training.local_steps": 2,
    "model.norm": "group",
}
CENTRAL = {"central_privacy": {"noise_multiplier": 1.0, "delta": 1e-3, "clip": 1.0}, "model.norm": "group"}
MASKED = {"federation.secure_aggregation": {}, "model.norm": "group"}


@pytest.mark.parametrize(
    ("personal", "changes", "why"),
    [
        ({"method": "ditto", "epochs": 3}, {}, "epochs belongs to method: finetune"),
        ({"method": "fedbn", "pull": 1.0}, {}, "pull belongs to method: ditto"),
        ({"method": "ditto", "pull": -1.0}, {}, "pull"),
        ({"method": "fedbn"}, {"model.norm": "none"}, "model.norm is none"),
        ({"method": "scaffold"}, {}, "plain SGD"),
        ({"method": "scaffold"}, {"training.optimiser": {"name": "sgd", "momentum": 0.9}}, "plain SGD"),
        ({"method": "scaffold"}, {"training.optimiser": {"name": "sgd", "clip_norm": 1.0}}, "clip_norm"),
        ({"method": "scaffold"}, SGD | {"federation.strategy": {"name": "fedadam"}}, "not fedadam"),
        ({"method": "scaffold"}, SGD | {"federation.compression": "int8"}, "compression: none"),
        ({"method": "scaffold"}, SGD | MASKED, "secure_aggregation hides"),
        ({"method": "scaffold"}, SGD | PRIVATE, "which privacy hides"),
        ({"method": "scaffold"}, SGD | CENTRAL, "central_privacy hides"),
        ({"method": "finetune"}, PRIVATE, "nobody is asked"),
        ({"method": "ditto"}, PRIVATE | {"privacy.evaluation": "exact"}, "test counts of it would tell"),
        ({"method": "finetune"}, CENTRAL, "nobody is asked"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_remedy(
    personal: Mapping[str, Any], changes: Mapping[str, Any], why: str
) -> None:
    plain = {key: value for key, value in changes.items() if key != "privacy.evaluation"}
    if "privacy.evaluation" in changes:
        plain["privacy"] = {**changes["privacy"], "evaluation": changes["privacy.evaluation"]}
    with pytest.raises(StudyError, match=why):
        fed.study(personalisation=personal, **plain)


@pytest.mark.parametrize("changes", [PRIVATE, CENTRAL, MASKED, {"federation.compression": "int8"}])
def test_own_models_go_with_what_hides_the_shared_one(changes: Mapping[str, Any]) -> None:
    for method in ("fedbn", "ditto"):
        assert of(method, **changes).personalisation is not None
    assert of("fedbn", **MASKED | {"model.norm": "batch"}).norms_stay


# --- FedBN ----------------------------------------------------------------------------------------------------------


def test_norm_layers_stay_at_their_site_and_everything_else_is_shared(
    grid: InProcessGrid, homes: dict[str, Path]
) -> None:
    sent: list[set[str]] = []

    def note(node: int, reply: Message) -> list[Message]:
        found = protocol.open_reply(reply)
        if isinstance(found, protocol.TrainReply):
            sent.append(set(found.weights))
        return [reply]

    progress = train(fed.Bent(grid, note), work(FEDBN))
    begun = first_weights(FEDBN)
    own = own_names(build(FEDBN, 0), FEDBN.personalisation)
    assert own == {name for name in begun if "norm" in name} and len(own) == 5
    assert sent == [set(begun) - own] * 9, "norm layers never leave"
    assert all(np.array_equal(progress.weights[name], begun[name]) for name in own), "nor are they averaged"
    assert all(not np.array_equal(progress.weights[name], begun[name]) for name in set(begun) - own)
    norms = [kept(grid, home, FEDBN, 3) for home in homes.values()]
    assert all(set(norm) == own for norm in norms)
    assert len({digest(norm) for norm in norms}) == 3, "each site has its own"
    models = [
        own_weights(protocol.Task(FEDBN, round=3), grid.resident.site(home), grid.resident, progress.weights, 3)
        for home in homes.values()
    ]
    for name in begun:
        alike = {models[index][name].tobytes() for index in range(3)}
        assert len(alike) == (1 if name not in own else 3) or name.endswith("num_batches_tracked")


def test_fedbn_is_fedavg_where_nothing_is_a_norm_layers(grid: InProcessGrid, homes: dict[str, Path]) -> None:
    """In round 1 all start alike, so that what is shared comes out as without it."""
    changes = {"federation.rounds": 1}
    alone, plain = train(grid, work(of("fedbn", **changes))), train(grid, work(fed.study(**changes)))
    own = own_names(build(FEDBN, 0), FEDBN.personalisation)
    assert all(np.array_equal(alone.weights[n], plain.weights[n]) == (n not in own) for n in plain.weights)


# --- Ditto ----------------------------------------------------------------------------------------------------------


def test_without_a_pull_dittos_model_is_the_one_trained_alone(grid: InProcessGrid, homes: dict[str, Path]) -> None:
    study = fed.study(personalisation={"method": "ditto", "pull": 0.0})
    train(grid, work(study))
    for alias, home in homes.items():
        site = grid.resident.site(home)
        model = build(study, seed_for(study.seed, 0, "weights"))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for round_ in (1, 2, 3):
            LocalFit(model, site.view(study, "train"), study, FitSeed(study.seed, 0, alias, round_)).run()
        assert digest(kept(grid, home, study, 3)) == digest(state_of(model)), "to the last bit"


def test_with_an_endless_pull_it_is_the_shared_one(grid: InProcessGrid, homes: dict[str, Path]) -> None:
    study = fed.study(personalisation={"method": "ditto", "pull": 1e12})
    arm = Arm(link_to(grid), work(study))
    arm._round(1, 3)
    arm._round(2, 3)
    received = arm.progress.weights
    arm._round(3, 3)
    names = trainable_names(build(study, 0))
    for home in homes.values():
        own = kept(grid, home, study, 3)
        assert same({n: own[n] for n in names}, {n: received[n] for n in names}, 1e-6)


def test_the_pull_orders_distances(grid: InProcessGrid, homes: dict[str, Path]) -> None:
    distances = []
    for pull in (0.0, 300.0, 3000.0):
        study = fed.study(personalisation={"method": "ditto", "pull": pull}, **{"federation.rounds": 1})
        train(grid, work(study))
        own, begun = kept(grid, homes["site-1"], study, 1), first_weights(study)
        distances.append(sum(float(np.square(own[n] - begun[n]).sum()) for n in trainable_names(build(study, 0))))
    assert distances[0] > 1.2 * distances[1] > 1.2 * 1.2 * distances[2] > 0


@pytest.mark.parametrize("study", [DITTO, FINETUNE])
def test_a_model_beside_the_shared_one_changes_nothing_of_it(study: Study, grid: InProcessGrid) -> None:
    plain, beside = train(grid, work(fed.study())), train(grid, work(study))
    assert digest(plain.weights) == digest(beside.weights), "byte for byte"
    assert comparable(plain.history) == comparable(beside.history)


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def test_no_epochs_of_fine_tuning_leave_the_shared_model(grid: InProcessGrid, homes: dict[str, Path]) -> None:
    study = fed.study(personalisation={"method": "finetune", "epochs": 0})
    weights = first_weights(study)
    task, site = protocol.Task(study, round=3), grid.resident.site(homes["site-1"])
    assert digest(own_weights(task, site, grid.resident, weights, 3)) == digest(weights)


def test_fine_tuning_keeps_the_epoch_of_least_validation_loss(grid: InProcessGrid, homes: dict[str, Path]) -> None:
    task, site, resident = protocol.Task(FINETUNE, round=3), grid.resident.site(homes["site-1"]), grid.resident
    weights = train(grid, work(FINETUNE)).weights
    own = own_weights(task, site, resident, weights, 3)
    losses = {}
    for name, state in (("shared", weights), ("own", own)):
        losses[name] = float(resident.scores(site, FINETUNE, "val", state).loss.mean())
    assert losses["own"] <= losses["shared"]
    assert digest(own_weights(task, site, Resident(), weights, 3)) == digest(own), "kept, in another process too"
    wild = fed.study(personalisation={"method": "finetune", "epochs": 2, "lr": 50.0})
    got = own_weights(protocol.Task(wild, round=3), site, resident, weights, 3)
    assert digest(got) == digest(weights), "no epoch helped"


# --- SCAFFOLD -------------------------------------------------------------------------------------------------------


def test_with_zero_variates_it_is_fedavg(grid: InProcessGrid) -> None:
    once = {"federation.rounds": 1} | SGD
    assert digest(train(grid, work(of("scaffold", **once))).weights) == digest(
        train(grid, work(fed.study(**once))).weights
    )
    three = train(grid, work(SCAFFOLD)).weights, train(grid, work(fed.study(**SGD))).weights
    assert digest(three[0]) != digest(three[1])


def test_with_one_local_step_it_is_fedavg(grid: InProcessGrid) -> None:
    """Corrections then cancel in the mean, whatever the sites hold and however large they are."""
    step = {"training.local_steps": 1, "training.batch_size": 64, "model.norm": "group"} | SGD
    scaffold, plain = train(grid, work(of("scaffold", **step))), train(grid, work(fed.study(**step)))
    assert same(scaffold.weights, plain.weights, 1e-6)
    assert not same(scaffold.weights, first_weights(SCAFFOLD.derive(**{"model.norm": "group"})), 1e-3)


def test_a_refused_reply_leaves_variates_that_cancel(grid: InProcessGrid, homes: dict[str, Path]) -> None:
    """The refused site goes back to the variate that the coordinator knows of it."""
    study = SCAFFOLD.derive(**{"federation.quorum": 0.6})

    def refuse(node: int, reply: Message) -> list[Message]:
        found = protocol.open_reply(reply)
        if isinstance(found, protocol.TrainReply) and (found.site, found.round) == ("site-2", 2):
            reply.content["facts"]["pace"] = 1e9  # type: ignore[call-overload, index]
        return [reply]

    arm = Arm(link_to(fed.Bent(grid, refuse)), work(study))
    for round_ in (1, 2, 3):
        arm._round(round_, 3)
        variate = arm._fits.variate
        assert variate is not None
        total: dict[str, NDArray[Any]] = {}
        for alias, last in variate.counted.items():
            site = grid.resident.site(homes[alias])
            with closing(Personal(site.memory(PERSONAL), site.vaults[0])) as states:
                own = states.at((study.hash, "federated", 0), last)
            for name, array in own.items():
                total[name] = total.get(name, 0.0) + array.astype(np.float64) * variate.examples[alias]
        mean = {name: array / sum(variate.examples.values()) for name, array in total.items()}
        assert same(variate.sent().all_sites, mean, 1e-5)
        assert any(np.abs(array).max() > 1e-3 for array in mean.values())
    assert "add up to 1e+09" in arm.progress.history[1]["sites"]["site-2"]["status"]
    assert variate.counted == dict.fromkeys(SITES, 3)


# --- killed and resumed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", [FEDBN, DITTO, SCAFFOLD, FINETUNE], ids=["fedbn", "ditto", "scaffold", "finetune"])
def test_a_run_that_was_killed_in_a_round_ends_with_the_same_models(
    study: Study, grid: InProcessGrid, homes: dict[str, Path], tmp_path: Path
) -> None:
    def own(progress: Any) -> list[str]:
        if not study.personalisation.own_models:  # type: ignore[union-attr]
            return [digest(kept(grid, home, study, 3)) for home in homes.values()]
        task = protocol.Task(study, round=3)
        sites = [grid.resident.site(home) for home in homes.values()]
        return [digest(own_weights(task, site, grid.resident, progress.weights, 3)) for site in sites]

    first = train(grid, work(study))
    models = own(first)
    interrupted = work(study, checkpoint=tmp_path / "checkpoint")
    kill_in_the_third_round(grid, interrupted)
    resumed = train(grid, interrupted)
    assert digest(resumed.weights) == digest(first.weights)
    assert own(resumed) == models and len(set(models)) == 3


# --- a drift that SCAFFOLD mends ------------------------------------------------------------------------------------


class Valley(torch.nn.Module):
    """A site whose loss is steepness/2·(x − bottom)²."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([start]))


def descend(valleys: list[tuple[float, float]], rounds: int, steps: int, *, corrected: bool) -> tuple[float, float]:
    """Where averaging ends on sites of (steepness, bottom), of one size each, and c there."""
    rate, x = 0.1, {"x": np.zeros(1, np.float32)}
    spec = SCAFFOLD.training.model_copy(update={"local_steps": steps, "local_epochs": None})
    spec = spec.model_copy(update={"optimiser": spec.optimiser.model_copy(update={"lr": rate})})
    mean, own = MeanVariate(x, spec, sites=len(valleys)), [{"x": np.zeros(1, np.float32)} for _ in valleys]
    for round_ in range(1, rounds + 1):
        mean.begin(round_, x)
        ends = []
        for number, (steepness, bottom) in enumerate(valleys):
            model = Valley(float(x["x"][0]))
            all_sites = mean.sent().all_sites or {"x": np.zeros(1, np.float32)}
            correction = Correction(model, all_sites, own[number])
            for _ in range(steps):
                model.x.grad = steepness * (model.x.detach() - bottom)
                if corrected:
                    correction.gradients()
                with torch.no_grad():
                    model.x -= rate * model.x.grad
                correction.stepped(rate)
            ends.append({"x": model.x.detach().numpy().copy()})
            reply = protocol.TrainReply(f"site-{number}", round_, ends[-1], 10, 0.5, 0.0, correction.pace)
            mean.add(reply, mean.judge(reply))
            moved = change(x, ends[-1], correction.pace, all_sites)
            own[number] = {"x": own[number]["x"] + moved["x"]}
        x = {"x": np.mean([end["x"] for end in ends], axis=0)}
        mean.finish()
    return float(x["x"][0]), float(mean.sent().all_sites["x"][0])


@pytest.mark.parametrize("valleys", [[(2.0, 1.0), (0.2, -3.0)], [(1.5, 0.0), (0.5, 4.0), (0.1, 9.0)]])
def test_on_skewed_valleys_averaging_drifts_and_scaffold_finds_the_bottom(valleys: list[tuple[float, float]]) -> None:
    bottom = sum(a * b for a, b in valleys) / sum(a for a, _ in valleys)
    drifted, _ = descend(valleys, 150, 10, corrected=False)
    mended, variate = descend(valleys, 150, 10, corrected=True)
    assert abs(drifted - bottom) > 0.1
    assert abs(mended - bottom) < 1e-4 and abs(variate) < 1e-3, "the mean gradient vanishes at the bottom"


# --- what travels ---------------------------------------------------------------------------------------------------


def opened(request: protocol.Request) -> protocol.Request:
    return protocol.open_request(protocol.seal(request).to(1, 60.0))


def test_what_is_ones_own_is_asked_for_by_an_optional_field() -> None:
    weights = first_weights(DITTO)
    plain = protocol.EvaluateRequest(protocol.Task(DITTO), "val", weights)
    assert "personal" not in protocol.seal(plain).content["head"]
    asked = opened(protocol.EvaluateRequest(protocol.Task(DITTO), "val", weights, personal=2))
    assert isinstance(asked, protocol.EvaluateRequest) and (asked.personal, asked.about) == (2, "val own")
    for study in (fed.study(), SCAFFOLD):
        with pytest.raises(ProtocolError, match="its study has none"):
            opened(protocol.EvaluateRequest(protocol.Task(study), "val", weights, personal=1))
    with pytest.raises(ProtocolError, match="does not have"):
        opened(protocol.EvaluateRequest(protocol.Task(DITTO), "val", weights, personal=4))


def test_variates_travel_beside_the_weights_and_are_held_to_what_they_are() -> None:
    weights, task = first_weights(SCAFFOLD), protocol.Task(SCAFFOLD, round=3)
    variates = protocol.Variates({"fc.weight": np.ones((2, 4), np.float32)}, {"site-1": 2})
    found = opened(protocol.TrainRequest(task, weights, variates=variates))
    assert isinstance(found, protocol.TrainRequest)
    assert same(found.variates.all_sites, variates.all_sites) and found.variates.counted == {"site-1": 2}
    assert "variates" not in protocol.seal(protocol.TrainRequest(task, weights)).content
    broken = {
        "none": (fed.study(), variates),
        "rounds that are in them": (SCAFFOLD, protocol.Variates(variates.all_sites, {"site-1": 3})),
        "not finite": (SCAFFOLD, protocol.Variates({"w": np.array([np.nan], np.float32)}, {"site-1": 1})),
    }
    for why, (study, sent) in broken.items():
        with pytest.raises(ProtocolError, match=why):
            opened(protocol.TrainRequest(protocol.Task(study, round=3), weights, variates=sent))


@pytest.mark.parametrize("pace", [None, 1e-9, 1e9])
def test_a_pace_that_no_fit_has_is_refused(pace: float | None) -> None:
    mean = MeanVariate({"w": np.zeros(2, np.float32)}, SCAFFOLD.training, sites=3)
    mean.begin(1, {"w": np.zeros(2, np.float32)})
    with pytest.raises(ReplyRefused, match="add up"):
        mean.judge(protocol.TrainReply("site-1", 1, {"w": np.ones(2, np.float32)}, 10, 0.5, 0.1, pace))


# --- at a real site -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def test_killed_between_its_own_model_and_the_reply_a_site_has_both_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, images=60)
    study = OURS.derive(personalisation={"method": "ditto"}, **{"federation.keep": "last"})
    site.survey(study)
    site.approve()
    path, run = site.home.state / PERSONAL, (study.hash, "federated", 0)

    def request(round_: int) -> protocol.TrainRequest:
        return protocol.TrainRequest(site.task(study, round=round_), site.weights)

    def own(round_: int) -> Weights:
        with site.home.vault(read_only=True) as vault, closing(Personal(path, vault)) as states:
            return states.at(run, round_)

    assert isinstance(site.send(request(1)), protocol.TrainReply)
    with monkeypatch.context() as patched:
        patched.setattr(Replies, "keep", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            site.send(request(2))
    first = digest(own(2))
    site.agent.close()
    site.agent = Agent(site.home)
    assert isinstance(site.send(request(2)), protocol.TrainReply)
    assert digest(own(2)) == first != digest(own(1)), "trained again from round 1's, not from its own"
    assert path.stat().st_mode & 0o777 == 0o600
    assert site.weights["features.conv1.weight"].tobytes() not in path.read_bytes(), "in the clear"
    asked = protocol.EvaluateRequest(site.task(study, round=2), "val", site.weights, personal=2)
    told = site.send(asked)
    assert isinstance(told, protocol.StatisticsReply) and told.chosen in protocol.CHOICES
    assert [one["kinds"] for one in site.events("reply")][-1] == ["counts of scores", "seconds", "choice of model"]
    site.decide(lambda found: found.withdraw(found.records()[0], by="Ann"))
    site.survey(study)
    assert own(2) == {}, "forgotten with the study"
    site.agent.close()


_FINETUNED_THEN_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit import federation
from client.agent import Agent
from client.home import Home
from common import protocol
from common.study import Study
from common.weights import load

folder, task, weights = sys.argv[1:]
agent = Agent(Home.open(Path(folder)))
study = Study.load(Path(task))
roster = agent.membership.roster.hash
asked = protocol.EvaluateRequest(protocol.Task(study, round=2, roster=roster), "val", load(Path(weights)), personal=1)
reply = protocol.open_reply(agent.answer(protocol.seal(asked).to(1, 60.0)))
assert isinstance(reply, protocol.StatisticsReply), reply
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_restart_other_weights_of_the_same_round_are_fine_tuned_anew(tmp_path: Path) -> None:
    """A coordinator that went on from an earlier checkpoint comes to the same round with another model."""
    site = Site(tmp_path, images=60)
    study = OURS.derive(personalisation={"method": "finetune", "epochs": 2, "lr": 0.003})
    site.survey(study)
    site.approve()
    site.agent.close()
    (tmp_path / "study.yaml").write_bytes(study.canonical())
    save(site.weights, tmp_path / "first.safetensors")
    arguments = [site.home.directory, tmp_path / "study.yaml", tmp_path / "first.safetensors"]
    ended = subprocess.run([sys.executable, "-c", _FINETUNED_THEN_KILLED, *map(str, arguments)], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    other = {name: np.asarray(array * np.asarray(1.1, array.dtype)) for name, array in site.weights.items()}
    task = site.task(study, round=2)
    with closing(Resident("cpu")) as resident:
        home = resident.site(site.home.directory)
        stale = kept_weights(task, home, site.weights, 1)
        assert stale is not None and kept_weights(task, home, other, 1) is None
        wanted = {digest(one): digest(finetune(task, home, resident, one)) for one in (site.weights, other)}
    assert digest(stale) == wanted[digest(site.weights)] != wanted[digest(other)]
    site.agent = Agent(site.home)
    told = site.send(protocol.EvaluateRequest(task, "val", other, personal=1))
    assert isinstance(told, protocol.StatisticsReply)
    with closing(Resident("cpu")) as resident:
        fresh = kept_weights(task, resident.site(site.home.directory), other, 1)
    assert fresh is not None and digest(fresh) == wanted[digest(other)]
    site.agent.close()


def test_people_read_what_stays_and_what_it_costs() -> None:
    assert "second one is trained here in every round" in personal_words(DITTO)
    assert "norm layers" in personal_words(FEDBN) and "which of its two" not in personal_words(FEDBN)
    assert "up to 5 passes" in personal_words(FINETUNE)
    assert "sum of learning rates" in personal_words(SCAFFOLD)
    assert "but not its norm layers" in leaves(FEDBN) and "sum of its learning rates" in leaves(SCAFFOLD)
    private = of("ditto", **PRIVATE)
    assert "Nothing is told of how good it is" in personal_words(private)
    policy = Policy.decode(TEMPLATE.encode())
    long = fed.study(personalisation={"method": "finetune", "epochs": 6})
    assert any("personalisation.epochs is 6" in one.text for one in policy.objections(long))
    assert not any("personalisation" in one.text for one in policy.objections(FINETUNE))


# --- with what hides updates ----------------------------------------------------------------------------------------


def test_under_masks_only_what_is_shared_is_summed(tmp_path: Path) -> None:
    """Batch norm counts batches, which no sum holds; where norm layers stay, that is no matter."""
    study = of("fedbn", **{"federation.secure_aggregation": {}, "federation.rounds": 1})
    homes = fed.make_sites(tmp_path / "sites", study)
    with closing(InProcessGrid(list(homes.values()))) as grid:
        roster = roster_of(study, tmp_path / "sites")
        masked = train(grid, work(study), roster=lambda: roster)
        plain = train(grid, work(of("fedbn", **{"federation.rounds": 1})))
    assert same(masked.weights, plain.weights, 1e-6)
    assert not same(masked.weights, first_weights(study), 1e-4)


def test_a_compressed_update_holds_no_norm_layer(grid: InProcessGrid) -> None:
    study = of("fedbn", **{"federation.compression": "int8"})
    names: list[set[str]] = []

    def note(node: int, reply: Message) -> list[Message]:
        found = protocol.open_reply(reply)
        if isinstance(found, protocol.UpdateReply):
            names.append(set(found.update.arrays))
        return [reply]

    progress = train(fed.Bent(grid, note), work(study))
    own = own_names(build(study, 0), study.personalisation)
    assert names == [set(progress.weights) - own] * 9
    assert same(progress.weights, train(grid, work(FEDBN)).weights, 0.05)


def test_a_norm_layer_that_comes_all_the_same_is_refused(grid: InProcessGrid) -> None:
    study = FEDBN.derive(**{"federation.rounds": 1, "federation.quorum": 0.6})

    def bend(node: int, reply: Message) -> list[Message]:
        found = protocol.open_reply(reply)
        if node == NODES["site-2"] and isinstance(found, protocol.TrainReply):
            whole = replace(found, weights={**first_weights(study), **found.weights})
            reply.content = protocol.answer(whole, fed.request(reply.content, protocol.TRAIN)).content
        return [reply]

    (record,) = train(fed.Bent(grid, bend), work(study)).history
    assert "leaves at its site" in record["sites"]["site-2"]["status"]


def test_a_federation_tells_of_own_models_what_a_simulation_does(grid: InProcessGrid, tmp_path: Path) -> None:
    """Sites validate, test and choose by themselves; no threshold is another's."""
    study = DITTO.derive(**{"federation.rounds": 1})
    result = federate(link_to(grid), study, tmp_path, base=tmp_path)
    arm = result["arms"]["personalised"]
    assert arm["method"] == "ditto" and set(arm["sites"]) == set(SITES)
    for facts in arm["sites"].values():
        assert facts["chosen"] in protocol.CHOICES and 0.0 <= facts["test"]["accuracy"]["value"] <= 1.0
    assert len({json.dumps(facts["thresholds"]) for facts in arm["sites"].values()}) > 1
    accuracies = [facts["test"]["accuracy"]["value"] for facts in arm["sites"].values()]
    assert arm["test"]["accuracy"]["value"] == pytest.approx(sum(accuracies) / 3)


def test_own_models_of_all_rounds_are_one_kind_of_request() -> None:
    """A site answers so many of a kind in a round: with a kind for each own model a coordinator had that many more."""
    task, weights = protocol.Task(DITTO, round=1), first_weights(DITTO)
    asked = [protocol.EvaluateRequest(task, "test", weights, personal=number) for number in (0, 1, 2)]
    identities = {identity_of(request) for request in asked}
    assert len(identities) == len(asked)
    assert {identity.kind for identity in identities} == {"evaluate.scores test own"}


def test_other_variates_are_another_fit() -> None:
    """A round is trained once: from the same weights, but bent by other variates, it would be trained again."""
    task, weights = protocol.Task(SCAFFOLD, round=2), first_weights(SCAFFOLD)
    zeros = {"w": np.zeros(2, np.float32)}
    variates = [
        protocol.Variates(),
        protocol.Variates(zeros, {"site-1": 1}),
        protocol.Variates({"w": np.ones(2, np.float32)}, {"site-1": 1}),
        protocol.Variates(zeros, {"site-2": 1}),
    ]
    identities = {identity_of(protocol.TrainRequest(task, weights, variates=one)) for one in variates}
    assert len(identities) == len(variates)
    assert {len(identity.digest) for identity in identities} == {64}
