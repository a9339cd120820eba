"""From sites' replies to the next model: order-free sums, and Flower's arithmetic for the rest.

Means are folded as replies arrive, in 64-bit fixed point, so that neither the order of
arrival nor the number of workers shows in a single bit (DESIGN 8). Strategies that need
every reply (krum, median, …) get them sorted by site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from common.errors import QuorumError, ReplyRefused
from common.protocol import TrainReply
from common.study import Study
from common.weights import Weights, to_arrays
from server.strategies import build_strategy

_SCALE = float(2**32)
_LIMIT = float(2**31)
_CHUNK = 1 << 18


class FixedPointSum:
    """Σ nᵢ·wᵢ in int64 steps of 2⁻³²: exact in any order, refused before it could overflow."""

    def __init__(self, template: Weights) -> None:
        self._sums = {name: np.zeros(value.size, np.int64) for name, value in template.items()}
        self._template = template
        self._bound = 0.0
        self.examples = 0

    def add(self, weights: Weights, examples: int) -> None:
        """Add one site's float arrays with weight ``examples``. Raises :class:`ReplyRefused`, changing nothing."""
        largest = max((float(np.abs(weights[name]).max(initial=0.0)) for name in self._sums), default=0.0)
        if self._bound + largest * examples >= _LIMIT:
            raise ReplyRefused(
                "values too large to add up: |Σ examples × weight| ≥ 2³¹; check the site's learning rate"
            )
        self._bound += largest * examples
        self.examples += examples
        buffer = np.empty(_CHUNK, np.float64)
        for name, total in self._sums.items():
            flat = weights[name].reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                part = flat[start : start + _CHUNK]
                scaled = buffer[: part.size]
                np.multiply(part, examples * _SCALE, out=scaled, dtype=np.float64)
                np.rint(scaled, out=scaled)
                total[start : start + _CHUNK] += scaled.astype(np.int64)

    def mean(self) -> dict[str, NDArray[Any]]:
        """Σ nᵢ·wᵢ / Σ nᵢ in the template's dtypes and shapes."""
        scale = self.examples * _SCALE
        return {
            name: (total / scale).astype(self._template[name].dtype).reshape(self._template[name].shape)
            for name, total in self._sums.items()
        }


@dataclass(frozen=True)
class Layout:
    """Which of a model's tensors the server's optimiser moves, which are only averaged, which are counters."""

    parameters: frozenset[str]
    buffers: frozenset[str]
    counters: frozenset[str]

    @classmethod
    def of(cls, weights: Weights, trainable: Sequence[str]) -> Layout:
        parameters = frozenset(trainable)
        counters = frozenset(name for name, value in weights.items() if value.dtype.kind in "iub")
        return cls(parameters, frozenset(weights) - parameters - counters, counters)


class Aggregator(ABC):
    """One round's replies in, next weights out."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @abstractmethod
    def begin(self, round_: int, weights: Weights) -> None:
        """Start a round that was sent ``weights``."""

    @abstractmethod
    def add(self, reply: TrainReply) -> None:
        """Take one checked reply, in any order."""

    @abstractmethod
    def finish(self) -> Weights:
        """The next weights. Raises :class:`QuorumError` where the strategy needs more replies."""

    def state(self) -> dict[str, NDArray[Any]]:
        """What must survive a restart between rounds (moments of a server optimiser)."""
        return {}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:  # noqa: B027 (most strategies keep nothing)
        """Continue from :meth:`state`."""


def _counters(layout: Layout, template: Weights, current: dict[str, NDArray[Any]], reply: Weights) -> None:
    """Integer counters (batches seen by a norm layer) take the maximum: they stay integers, in any order."""
    for name in layout.counters:
        current[name] = np.maximum(current.get(name, template[name]), reply[name])


class MeanAggregator(Aggregator):
    """Weighted mean, folded on arrival; then, for FedOpt-type strategies, the server's optimiser step.

    Buffers of norm layers are statistics, not parameters: they are averaged and never
    pass through the optimiser (a momentum step can turn a variance negative).
    """

    def __init__(self, layout: Layout, optimiser: flower.FedAvg | None) -> None:
        super().__init__(layout)
        self._optimiser = optimiser

    def begin(self, round_: int, weights: Weights) -> None:
        self._round, self._sent = round_, weights
        floats = {name: weights[name] for name in weights if name not in self.layout.counters}
        self._sum = FixedPointSum(floats)
        self._counted: dict[str, NDArray[Any]] = {}

    def add(self, reply: TrainReply) -> None:
        self._sum.add(reply.weights, reply.examples)
        _counters(self.layout, self._sent, self._counted, reply.weights)

    def finish(self) -> Weights:
        if self._sum.examples == 0:
            raise QuorumError("no reply to average")
        mean = self._sum.mean() | self._counted
        if self._optimiser is not None:
            mean |= self._step(mean)
        return {name: mean[name] for name in self._sent}

    def _step(self, mean: Weights) -> dict[str, NDArray[Any]]:
        names = sorted(self.layout.parameters)
        before = {name: self._sent[name] for name in names}
        assert self._optimiser is not None
        if isinstance(self._optimiser, flower.FedAvgM):
            self._optimiser.current_arrays = to_arrays(before)
        else:
            self._optimiser.current_arrays = before  # type: ignore[attr-defined]
        message = _as_reply({name: mean[name] for name in names}, self._sum.examples, 0.0)
        arrays, _ = self._optimiser.aggregate_train(self._round, [message])
        return _cast(arrays, before)

    def state(self) -> dict[str, NDArray[Any]]:
        saved: dict[str, NDArray[Any]] = {}
        names = sorted(self.layout.parameters)
        for key in ("m_t", "v_t", "momentum_vector"):
            value = getattr(self._optimiser, key, None)
            if value is not None:
                pairs = value.items() if isinstance(value, dict) else zip(names, value, strict=True)
                saved |= {f"{key}/{name}": np.asarray(array) for name, array in pairs}
        return saved

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        for key in ("m_t", "v_t", "momentum_vector"):
            part = {name.split("/", 1)[1]: array for name, array in state.items() if name.startswith(f"{key}/")}
            if part:
                ordered = {name: part[name] for name in sorted(part)}
                setattr(self._optimiser, key, list(ordered.values()) if key == "momentum_vector" else ordered)


class CollectAggregator(Aggregator):
    """Strategies that look at every reply: Flower's arithmetic on parameters, replies sorted by site.

    Buffers take the coordinate-wise median under robust strategies (one liar cannot move
    them far) and the weighted mean under q-FedAvg, which trusts its sites.
    """

    def __init__(self, layout: Layout, strategy: flower.Strategy) -> None:
        super().__init__(layout)
        self._strategy = strategy

    def begin(self, round_: int, weights: Weights) -> None:
        self._round, self._sent = round_, weights
        self._replies: dict[str, TrainReply] = {}

    def add(self, reply: TrainReply) -> None:
        self._replies[reply.site] = reply

    def finish(self) -> Weights:
        replies = [self._replies[site] for site in sorted(self._replies)]
        names = sorted(self.layout.parameters)
        before = {name: self._sent[name] for name in names}
        if isinstance(self._strategy, flower.QFedAvg):
            self._strategy.current_arrays = to_arrays(before)
        messages = [_as_reply({n: r.weights[n] for n in names}, r.examples, r.loss) for r in replies]
        arrays, _ = self._strategy.aggregate_train(self._round, messages)
        if arrays is None:
            raise QuorumError(
                f"{type(self._strategy).__name__} cannot work with {len(replies)} replies; "
                "lower num_malicious_nodes or federate more sites"
            )
        after: dict[str, NDArray[Any]] = _cast(arrays, before)
        for reply in replies:
            _counters(self.layout, self._sent, after, reply.weights)
        for name in self.layout.buffers:
            stack = np.stack([reply.weights[name] for reply in replies])
            if isinstance(self._strategy, flower.QFedAvg):
                value = np.average(stack, axis=0, weights=[reply.examples for reply in replies])
            else:
                value = np.median(stack, axis=0)
            after[name] = np.asarray(value, self._sent[name].dtype)
        return {name: after[name] for name in self._sent}


def build_aggregator(study: Study, layout: Layout) -> Aggregator:
    """The aggregator for ``study.federation.strategy``."""
    strategy = build_strategy(study.federation.strategy)
    if type(strategy) in (flower.FedAvg, flower.FedProx):
        return MeanAggregator(layout, None)
    if isinstance(strategy, flower.FedAvgM | flower.FedAdam | flower.FedYogi | flower.FedAdagrad):
        return MeanAggregator(layout, strategy)
    return CollectAggregator(layout, strategy)


def _as_reply(arrays: Weights, examples: int, loss: float) -> Message:
    content = RecordDict(
        {
            "arrays": to_arrays(arrays),
            "metrics": MetricRecord({"num-examples": examples, "train_loss": loss}),
        }
    )
    return Message(content, 1, "train")


def _cast(arrays: ArrayRecord | None, template: Weights) -> dict[str, NDArray[Any]]:
    assert arrays is not None
    found = {name: array.numpy() for name, array in arrays.items()}
    return {name: np.asarray(found[name], template[name].dtype).reshape(template[name].shape) for name in template}


__all__ = ["Aggregator", "FixedPointSum", "Layout", "build_aggregator"]
