"""Models of a site's own: what defines each method, what never leaves, and what a kill does not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from numpy.typing import NDArray

from client.app import Resident
from client.own_model import own_weights
from client.personal import PERSONAL, Personal
from client.training import FitSeed, LocalFit
from common import protocol
from common.errors import StudyError
from common.models import build
from common.personal import own_names
from common.randomness import seed_for
from common.study import Study
from common.weights import Weights, digest, state_of, trainable_names
from server.rounds import Arm
from simulations.engine import InProcessGrid
from tests.unit import federation as fed
from tests.unit.test_rounds import SITES, comparable, link_to, train, work

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
        variate = arm._variate
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
    arm = Arm(link_to(grid), interrupted)
    for round_ in (1, 2):
        arm._round(round_, 3)
    Arm(link_to(grid), interrupted)._train(3, arm.progress.weights, {"bytes": 0, "sites": {}})  # trained, never saved
    resumed = train(grid, interrupted)
    assert digest(resumed.weights) == digest(first.weights)
    assert own(resumed) == models and len(set(models)) == 3
