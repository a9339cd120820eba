"""One local fit against hand-written loops: the same steps, the same numbers, and no trace beside the weights."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional

from client.objective import Truth, class_weights, objective_of
from client.optimiser import keep_the_compiler_out, step
from client.training import FitSeed, LocalFit, learning_rate, pieces
from client.vault.view import View
from common.errors import DataError, DeviceError, StudyError
from common.models import build
from common.randomness import seed_for
from common.study import ScheduleSpec, Study
from common.weights import digest, restore, state_of
from tests.unit import federation as fed

ROOT = Path(__file__).resolve().parents[2]
SEED = FitSeed(7, 0, "site-1", 1)
CLASSES = {"binary": ["a", "b"], "multiclass": ["a", "b", "c"], "multilabel": ["a", "b", "c"]}


def study(task: str = "binary", norm: str = "none", **changes: Any) -> Study:
    made = {"task": task, "classes": CLASSES[task], "model.norm": norm, "image.size": 16}
    return fed.study(**made | changes)


def view(made: Study, count: int = 22) -> View:
    """Noise with labels; of a multilabel study some entries are masked."""
    draw = np.random.default_rng(11)
    images = torch.from_numpy(draw.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8))
    if made.task == "multilabel":
        targets = draw.integers(0, 2, (count, 3)).astype(np.float32)
        targets[draw.random((count, 3)) < 0.3] = np.nan
        targets[:, 0] = draw.integers(0, 2, count)  # an image without any label is in no view
    else:
        share = [0.7, 0.3] if made.task == "binary" else [0.6, 0.3, 0.1]
        targets = np.eye(len(share), dtype=np.float32)[draw.choice(len(share), count, p=share)]
    return View(images, torch.from_numpy(targets), torch.arange(count), count, 0)


def fit(made: Study, data: View | None = None, seed: FitSeed = SEED) -> dict[str, np.ndarray[Any, Any]]:
    model = build(made, 3)
    LocalFit(model, data or view(made), made, seed).run()
    return state_of(model)


def far(a: Any, b: Any) -> float:
    """The largest difference of two models' weights."""
    return max(float(np.abs(a[name].astype(float) - b[name].astype(float)).max()) for name in a)


SGD = {"training.optimiser": {"name": "sgd", "lr": 1.0}}


# --- gradient accumulation --------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["none", "balanced"])
@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("microbatch", [1, 5, 11])
def test_a_batch_in_pieces_is_the_whole_batch(task: str, weighting: str, microbatch: int) -> None:
    """One step at learning rate 1 is the gradient itself; classes and masks are unevenly spread over the pieces."""
    changes = {"training.batch_size": 22, "training.class_weighting": weighting, "training.label_smoothing": 0.1, **SGD}
    whole = study(task, **changes)
    parts = study(task, **changes, **{"training.microbatch": microbatch})
    assert far(fit(whole), fit(parts)) < 1e-6
    assert far(fit(whole), state_of(build(whole, 3))) > 1e-3


def test_a_batch_that_does_not_fit_is_the_same_step_in_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(**{"training.batch_size": 22, "augment.rotate_deg": 20.0, "augment.shift": 0.1, **SGD})
    whole = fit(made)
    sizes: list[int] = []
    forward = nn.Linear.forward

    def full(self: nn.Linear, batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        if len(batch) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(nn.Linear, "forward", full)
    assert far(fit(made), whole) < 1e-6
    assert sizes[:2] == [22, 11]
    assert max(sizes[2:]) <= 6

    def never(self: nn.Linear, batch: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nn.Linear, "forward", never)
    with pytest.raises(DeviceError, match=r"do not fit in the GPU's memory; use a smaller model .* or device: cpu"):
        fit(made)


# --- against hand-written loops ---------------------------------------------------------------------


def order(made: Study, count: int, seed: FitSeed = SEED) -> list[Tensor]:
    """The batches of one fit, drawn as FitSeed says."""
    draw = torch.Generator().manual_seed(seed_for(seed.study, seed.repeat, seed.site, seed.round, "shuffle"))
    size = made.training.batch_size
    return [
        part for _ in range(made.training.epochs or 1) for part in torch.randperm(count, generator=draw).split(size)
    ]


def by_hand(
    made: Study,
    optimiser: Callable[[Any], torch.optim.Optimizer],
    *,
    l1: float = 0.0,
    mu: float = 0.0,
    clip: float | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """The plain loop that a textbook has, for a binary study."""
    model, data = build(made, 3), view(made)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    keep_the_compiler_out()
    steps = optimiser(model.parameters())
    model.train()
    for rows in order(made, len(data)):
        steps.zero_grad()
        images = data.images[rows].float() / 255
        loss = functional.binary_cross_entropy_with_logits(model(images)[:, 0], data.targets[rows, 1])
        for parameter, before in zip(model.parameters(), start, strict=True):
            loss = loss + l1 * parameter.abs().sum() + mu / 2 * ((parameter - before) ** 2).sum()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        step(steps)  # torch's own to the bit, as the slow test below shows, without its compiler's import
    return state_of(model)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "adam": ({"name": "adam", "lr": 0.01}, {}, lambda p: torch.optim.Adam(p, 0.01)),
    "adam, decay": (
        {"name": "adam", "lr": 0.01, "weight_decay": 0.1},
        {},
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    ),
    "adamw": (
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        {},
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
    "sgd, momentum": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        {},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    ),
    "l1": ({"name": "sgd", "lr": 0.1, "l1": 0.01}, {"l1": 0.01}, lambda p: torch.optim.SGD(p, 0.1)),
    "clip": ({"name": "sgd", "lr": 0.5, "clip_norm": 0.05}, {"clip": 0.05}, lambda p: torch.optim.SGD(p, 0.5)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fit_equals_the_plain_loop(case: str) -> None:
    spec, penalties, optimiser = CASES[case]
    made = study(**{"training.optimiser": spec, "training.local_epochs": 2, "training.batch_size": 8})
    expected = by_hand(made, optimiser, **penalties)
    assert far(fit(made), expected) < 2e-6
    assert far(expected, state_of(build(made, 3))) > 1e-3


def test_fedprox_equals_the_plain_loop_and_holds_the_weights_back() -> None:
    changes = {"training.optimiser": {"name": "sgd", "lr": 0.1}, "training.local_epochs": 4}
    made = study(**changes, **{"federation.strategy": {"name": "fedprox", "params": {"proximal_mu": 2.0}}})
    ours = fit(made)
    assert far(ours, by_hand(made, lambda p: torch.optim.SGD(p, 0.1), mu=2.0)) < 2e-6
    start = state_of(build(made, 3))
    assert far(ours, start) < 0.9 * far(fit(study(**changes)), start)


@pytest.mark.parametrize("params", [{}, {"proximal_mu": "much"}, {"proximal_mu": -1.0}, {"proximal_mu": True}])
def test_fedprox_without_a_mu_is_no_silent_fedavg(params: dict[str, Any]) -> None:
    made = study(**{"federation.strategy": {"name": "fedprox", "params": params}})
    with pytest.raises(StudyError, match="fedprox needs proximal_mu"):
        fit(made)


@pytest.mark.slow
def test_a_fit_does_not_wait_for_a_compiler_that_it_does_not_use() -> None:
    """torch._dynamo takes 2 to 4 s of CPU time to import, in every process."""
    code = """
import sys, torch
from torch import nn
from client.optimiser import make_optimiser, step
from common.study import OptimiserSpec
for name in ("adam", "adamw", "sgd"):
    for plain in (False, True):
        torch.manual_seed(1)
        model = nn.Linear(5, 3)
        optimiser = make_optimiser(model, OptimiserSpec(name=name, weight_decay=0.1))
        for number in range(3):
            optimiser.zero_grad()
            (model(torch.randn(7, 5)) ** 2).sum().backward()
            optimiser.step() if plain else step(optimiser)
        if plain:
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), seen[name], strict=True))
        else:
            seen = {name: list(model.parameters())}
            print(name, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "adam False"


def test_the_reported_loss_is_the_mean_over_images() -> None:
    made = study(**{"training.optimiser": {"name": "sgd", "lr": 1e-12}, "training.batch_size": 8})
    model, data = build(made, 3), view(made)
    with torch.no_grad():
        logits = model(data.images.float() / 255)[:, 0]
    expected = functional.binary_cross_entropy_with_logits(logits, data.targets[:, 1])
    found = LocalFit(model, data, made, SEED).run()
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert (found.examples, found.steps) == (22, 3)
    assert not model.training


# --- loss and class weights -------------------------------------------------------------------------


def test_weights_of_several_classes_are_scikit_learns() -> None:
    made = study("multiclass", **{"training.class_weighting": "balanced"})
    targets = view(made, 60).targets
    labels = targets.argmax(1).numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights(made, targets)
    assert found is not None
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_weights_of_yes_and_no_are_scikit_learns_in_each_column(task: str) -> None:
    made = study(task, **{"training.class_weighting": "balanced"})
    targets = view(made, 60).targets
    found = class_weights(made, targets)
    assert found is not None
    columns = targets[:, 1:] if task == "binary" else targets
    assert found.shape == (2, columns.shape[1])
    for column in range(columns.shape[1]):
        known = columns[:, column][~torch.isnan(columns[:, column])].numpy()
        expected = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=known)
        np.testing.assert_allclose(found[:, column].numpy(), expected, rtol=1e-6)


def test_a_class_that_a_site_does_not_have_weighs_one() -> None:
    made = study("multiclass", **{"training.class_weighting": "balanced"})
    targets = torch.eye(3)[torch.tensor([0, 0, 1])]
    found = class_weights(made, targets)
    assert found is not None
    assert found[2] == 1.0
    assert torch.isfinite(found).all()
    one_sided = study("binary", **{"training.class_weighting": "balanced"})
    found = class_weights(one_sided, torch.eye(2)[torch.tensor([1, 1])])
    assert found is not None
    assert found.flatten().tolist() == [1.0, 0.5]


def objective_loss(made: Study, targets: Tensor, logits: Tensor) -> Tensor:
    objective, truth = objective_of(made, targets), Truth(targets)
    return objective.total(logits, truth) / objective.weight(truth)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_multiclass_loss_is_torchs_weighted_mean(smoothing: float) -> None:
    made = study("multiclass", **{"training.class_weighting": "balanced", "training.label_smoothing": smoothing})
    targets, logits = view(made, 30).targets, torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    expected = functional.cross_entropy(
        logits, targets.argmax(1), weight=class_weights(made, targets), label_smoothing=smoothing
    )
    assert float(objective_loss(made, targets, logits)) == pytest.approx(float(expected), rel=1e-6)
    plain = study("multiclass", **{"training.label_smoothing": smoothing})
    expected = functional.cross_entropy(logits, targets.argmax(1), label_smoothing=smoothing)
    assert float(objective_loss(plain, targets, logits)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("weighting", ["none", "balanced"])
def test_masked_entries_get_no_gradient_and_do_not_count(weighting: str) -> None:
    made = study("multilabel", **{"training.class_weighting": weighting})
    targets = view(made, 30).targets
    masked = torch.isnan(targets)
    assert masked.any()
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    objective_loss(made, targets, logits).backward()
    assert logits.grad is not None
    assert (logits.grad[masked] == 0).all()
    assert (logits.grad[~masked] != 0).all()
    assert torch.isfinite(logits.grad).all()
    if weighting == "none":
        expected = functional.binary_cross_entropy_with_logits(logits[~masked], targets[~masked])
        assert float(objective_loss(made, targets, logits).detach()) == pytest.approx(
            float(expected.detach()), rel=1e-6
        )
    changed = logits.detach().clone()
    changed[masked] += 100
    assert torch.equal(objective_loss(made, targets, changed), objective_loss(made, targets, logits.detach()))


def test_a_batch_without_any_label_has_no_loss() -> None:
    made = study("multilabel")
    targets = torch.full((4, 3), torch.nan)
    assert float(objective_loss(made, targets, torch.ones(4, 3))) == 0.0


# --- learning rate ----------------------------------------------------------------------------------


def test_schedules_are_torchs_closed_forms() -> None:
    epochs = 30
    for kind, reference in (
        ("exponential", lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.9)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs, eta_min=0.5 * 0.2)),
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ):
        keep_the_compiler_out()
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
        schedule = reference(optimiser)
        optimiser._opt_called = True  # type: ignore[attr-defined]  # else the schedule warns that nothing was trained
        spec = ScheduleSpec(kind=kind, gamma=0.9, every=7, floor=0.2)  # type: ignore[arg-type]
        by_round = ScheduleSpec(kind=kind, gamma=0.9, every=7, floor=0.2, unit="round")  # type: ignore[arg-type]
        for epoch in range(epochs):
            expected = pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
            assert learning_rate(0.5, spec, epoch=epoch, epochs=epochs, round_=1, rounds=1) == expected
            assert learning_rate(0.5, by_round, epoch=0.0, epochs=1, round_=epoch + 1, rounds=epochs) == expected
            schedule.step()


def epochs_of(made: Study, count: int, round_: int) -> list[float]:
    """Where in the study each step of a round stands, in epochs."""
    local = LocalFit(build(made, 3), view(made, count), made, FitSeed(7, 0, "s", round_))
    return [(round_ - 1) * local.per_round + epoch for epoch, _ in local._schedule()]


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("count", [8, 9, 20, 22])
def test_epochs_rise_evenly_over_steps_and_rounds(count: int, norm: str) -> None:
    made = study(norm=norm, **{"training.local_epochs": 2, "training.batch_size": 8})
    steps = [epoch for round_ in (1, 2, 3) for epoch in epochs_of(made, count, round_)]
    assert steps == sorted(set(steps))
    whole = [epoch for epoch in steps if epoch == int(epoch)]
    assert whole == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]  # each pass begins where the one before has ended


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_epochs_go_on_where_counted_steps_have_left_off(steps: int) -> None:
    made = study(**{"training.local_steps": steps, "training.batch_size": 8})
    local = LocalFit(build(made, 3), view(made, 20), made, SEED)
    *_, (last, rows) = local._schedule()
    assert local.per_round == pytest.approx(last + len(rows) / 20)


def test_pieces_have_no_single_at_their_end_where_none_may_be() -> None:
    assert pieces(9, 4, drop_single=False) == [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert pieces(9, 4, drop_single=True) == [slice(0, 4), slice(4, 9)]
    assert pieces(8, 4, drop_single=True) == [slice(0, 4), slice(4, 8)]
    assert pieces(1, 4, drop_single=True) == [slice(0, 1)]


# --- randomness -------------------------------------------------------------------------------------


NOISY = {
    "model.dropout": 0.5,
    "augment": {"rotate_deg": 20.0, "shift": 0.1, "flip_horizontal": True, "brightness": 0.2},
    "training.batch_size": 8,
}


def test_the_same_fit_twice_is_the_same_to_the_bit() -> None:
    made = study(**NOISY)
    assert digest(fit(made)) == digest(fit(made))


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_model_that_trained_elsewhere_before_is_as_good_as_new(norm: str) -> None:
    """One resident model plays all sites of a process."""
    made = study(norm=norm, **NOISY)
    model = build(made, 3)
    start = state_of(model)
    LocalFit(model, view(made, 17), made, FitSeed(7, 0, "site-2", 4)).run()
    restore(model, start)
    LocalFit(model, view(made), made, SEED).run()
    assert digest(state_of(model)) == digest(fit(made))


@pytest.mark.parametrize(
    "other",
    [FitSeed(8, 0, "site-1", 1), FitSeed(7, 1, "site-1", 1), FitSeed(7, 0, "site-2", 1), FitSeed(7, 0, "site-1", 2)],
)
@pytest.mark.parametrize("part", ["order", "dropout", "augment"])
def test_study_repeat_site_and_round_each_name_other_numbers(other: FitSeed, part: str) -> None:
    """Order, dropout and augmentation, each by itself: images that are all alike have no order to differ in."""
    changes: dict[str, Any] = {"training.batch_size": 8} if part == "order" else {"training.batch_size": 22}
    changes |= {"training.optimiser": {"name": "sgd", "lr": 0.1}}
    if part != "order":
        changes |= {name: value for name, value in NOISY.items() if part in name}
    made = study(**changes)
    data = view(made)
    if part != "order":
        alike = torch.zeros(22, dtype=torch.int64)
        data = replace(data, images=data.images[alike], targets=data.targets[alike])
        plain = study(**{"training.batch_size": 22, "training.optimiser": {"name": "sgd", "lr": 0.1}})
        assert digest(fit(plain, data)) == digest(fit(plain, data, other))
    assert far(fit(made, data), fit(made, data, other)) > 1e-6


def test_nobodys_random_state_is_touched() -> None:
    made = study(**NOISY)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # type: ignore[index]
    fit(made)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert random.getstate() == before[2]
    first = digest(fit(made))
    torch.manual_seed(6)
    assert digest(fit(made)) == first  # nor is it read


# --- lengths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "examples"), [(1, 8), (2, 16), (3, 22), (5, 22)])
def test_counted_steps(steps: int, examples: int) -> None:
    made = study(**{"training.local_steps": steps, "training.batch_size": 8})
    found = LocalFit(build(made, 3), view(made), made, SEED).run()
    assert (found.steps, found.examples) == (steps, examples)


@pytest.mark.parametrize(("count", "steps"), [(16, 2), (17, 2), (18, 3), (2, 1)])
def test_a_last_batch_of_one_joins_its_neighbour_under_batch_norm(count: int, steps: int) -> None:
    made = study(norm="batch", **{"training.batch_size": 8})
    model = build(made, 3)
    found = LocalFit(model, view(made, count), made, SEED).run()
    assert (found.steps, found.examples) == (steps, count)
    assert np.isfinite(found.loss)
    for name, value in state_of(model).items():
        assert np.isfinite(value).all(), name
        if name.endswith("num_batches_tracked"):
            assert (int(value), value.shape, value.dtype) == (steps, (), np.int64)


def test_batch_norm_in_pieces_never_sees_a_single_image() -> None:
    made = study(norm="batch", **{"training.batch_size": 8, "training.microbatch": 7})
    sizes: list[int] = []
    model = build(made, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    LocalFit(model, view(made, 16), made, SEED).run()
    assert sizes
    assert min(sizes) > 1


def test_batch_norm_with_too_few_images_says_what_to_do() -> None:
    made = study(norm="batch")
    with pytest.raises(DataError, match=r"at least two training images; use model\.norm: group"):
        LocalFit(build(made, 3), view(made, 1), made, SEED)
    for change in ({"training.batch_size": 1}, {"training.microbatch": 1}):
        single = study(norm="batch", **change)
        with pytest.raises(StudyError, match=r"batch norm needs at least two; use model\.norm: group"):
            LocalFit(build(single, 3), view(single), single, SEED)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_cpu_and_cuda_agree(norm: str) -> None:
    """bf16 autocast rounds to 2⁻⁸: after three epochs the updates point the same way and differ by at most a tenth."""
    made = study(norm=norm, **{"training.local_epochs": 3, "training.optimiser": {"name": "sgd", "lr": 0.05}})
    start = state_of(build(made, 3))
    cpu = fit(made)
    model = build(made, 3).to("cuda:0")
    data = view(made)
    LocalFit(model, data.to("cuda:0"), made, SEED).run()
    cuda = state_of(model)
    names = [name for name, value in start.items() if value.dtype == np.float32 and "running" not in name]
    ours, theirs = (np.concatenate([(w[n] - start[n]).ravel() for n in names]) for w in (cpu, cuda))
    assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(ours)
    # A view that does not fit on the GPU stays in main memory and gives the same batches.
    restore(model, start)
    LocalFit(model, data, made, SEED).run()
    assert far(state_of(model), cuda) < 1e-3
