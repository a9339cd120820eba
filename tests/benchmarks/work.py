"""The work that is compared: five hospitals' images, a small CNN, one epoch of Adam a round, federated averaging.

Plain torch, without fedward: shared by the bare loop and by the peers. ``BENCH_NPZ`` names the images,
``BENCH_SITES``, ``BENCH_ROUNDS`` and ``BENCH_TUNED`` the rest.
"""

from __future__ import annotations

import functools
import inspect
import os

import numpy as np
import torch
from torch import nn

SITES = int(os.environ.get("BENCH_SITES", "5"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
TUNED = os.environ.get("BENCH_TUNED") == "1"
"""With fedward's own tricks: channels-last memory, fused Adam, pooling before ReLU, no import of torch's compiler.
The fifth, freed memory kept for the next batch, is in the environment that ``workloads`` starts it with."""
BATCH, RATE = 32, 1e-3


class Net(nn.Module):
    """conv 32/64/64/64, each with pooling; FC 128, 64; one logit."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (32, 64, 64, 64):
            tail = [nn.MaxPool2d(2), nn.ReLU()] if TUNED else [nn.ReLU(), nn.MaxPool2d(2)]
            layers += [nn.Conv2d(channels, width, 3, padding=1), *tail]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))  # type: ignore[no-any-return]


@functools.cache
def data(site: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One hospital's share: float32 ``(N, 1, 64, 64)`` in [0, 1], and ``(N, 1)``."""
    with np.load(os.environ["BENCH_NPZ"]) as file:
        images, labels = file["train_images"][site::SITES], file["train_labels"][site::SITES]
    return torch.from_numpy(images[:, None].astype(np.float32) / 255), torch.from_numpy(labels.astype(np.float32))


def initial() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in Net().state_dict().items()}


def train(state: dict[str, torch.Tensor], site: int, round_: int) -> tuple[dict[str, torch.Tensor], int, float]:
    """One local epoch from ``state``: new state, images, mean loss."""
    torch.set_num_threads(1)
    images, labels = data(site)
    model = Net()
    model.load_state_dict(state)
    if TUNED:
        model = model.to(memory_format=torch.channels_last)
    if TUNED:
        _keep_the_compiler_out()
    optimiser = torch.optim.Adam(model.parameters(), RATE, fused=TUNED or None)
    objective = nn.BCEWithLogitsLoss()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000 * round_ + site))
    total = 0.0
    for start in range(0, len(images), BATCH):
        chosen = order[start : start + BATCH]
        batch = images[chosen]
        if TUNED:
            batch = batch.contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        loss = objective(model(batch), labels[chosen])
        loss.backward()
        if TUNED:
            with torch.no_grad():
                inspect.unwrap(torch.optim.Adam.step)(optimiser)
        else:
            optimiser.step()
        total += loss.item() * len(chosen)
    return model.state_dict(), len(images), total / len(images)


def _keep_the_compiler_out() -> None:
    """As ``client.optimiser`` does; ``torch.optim`` would import ``torch._dynamo`` where nothing is compiled."""
    for method in (torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.zero_grad):
        plain = inspect.unwrap(method)
        plain.__dynamo_disable = plain


def average(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
