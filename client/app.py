"""The ClientApp: thin handlers, decode -> work -> encode.

The same app runs in the in-process engine, in Flower's Ray simulation and in a real
federation. What a process keeps between messages (open sites, one resident model a
study, prepared views) is a cache: losing it changes no number.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from client import comparing
from client.choice import choose
from client.evaluation import Scores, first_pass, predict
from client.examining import alteration, count_by, moments_by
from client.feedback import compressed
from client.lesions import find as find_lesions
from client.lesions import second_pass
from client.noise_shares import noised_steps
from client.own_model import own_weights
from client.peers import Peers
from client.personal import OwnPart
from client.private import PrivateFit
from client.releases import RELEASES, Releases
from client.secagg import SecureSums, SimulatedStore
from client.site import VIEW_CACHE_BYTES, Site
from client.stock import locate_by_config, permit
from client.survey import take
from client.training import FitSeed, LocalFit
from client.vault.prepared import PreparedView
from client.vault.view import ViewCache
from common import protocol
from common.accounting import Mechanism
from common.basis import Basis
from common.contribution import clipped
from common.errors import FedwardError, ModelError, PackageError, PolicyObjects, PrivacyError, VaultError
from common.memory import keep_freed_memory
from common.metrics import Found, Question
from common.models import build
from common.noise_shares import shares_of
from common.protocol import secure
from common.randomness import seed_for
from common.study import Study
from common.weights import Weights, all_finite, changing_names, digest, restore, trainable_names

logger = logging.getLogger("fedward.client")

Locate = Callable[[Context], Path]
Permit = Callable[[Path, Study], None]
Spend = Callable[[Mechanism | None], None]
"""Called with what a request will spend, before its work touches an image; ``None``: what no noise bounds. May raise.

A simulated site keeps no ledger: nobody is protected there, and each run says itself what it would have spent.
"""
_OPEN_SITES = 128
_Asked = tuple[Path, str, str, str, Basis | None]
"""Site, study, split, weights and basis that something was seen with."""
T = TypeVar("T")


class Resident:
    """One process's caches, shared by all the sites it plays."""

    def __init__(
        self, device: str | None = None, passphrase: Callable[[], str] | None = None, *, masks: bool = True
    ) -> None:
        """``device`` goes before what ``site.yaml`` says; ``passphrase`` opens a vault that one locks.

        ``masks``: whether :func:`handle` masks a fit that is to be summed under masks; an agent does so itself, after
        it has kept it.
        """
        keep_freed_memory()
        self.masks = masks
        self._device, self._passphrase = device, passphrase
        self.views = ViewCache(VIEW_CACHE_BYTES)
        self._sites: OrderedDict[Path, Site] = OrderedDict()
        self._models: OrderedDict[tuple[str, str], nn.Module] = OrderedDict()
        self._scores: OrderedDict[_Asked, Scores] = OrderedDict()
        self._lesions: OrderedDict[_Asked, Found] = OrderedDict()

    def site(self, directory: Path) -> Site:
        """The opened site; the least recently used one is closed when many are open.

        One whose vault was changed meanwhile is opened again: an erased patient takes no part in the next message.
        """
        site = self._sites.pop(directory, None)
        if site is not None and site.stale:
            site.close()
            for kept in (self._scores, self._lesions):
                for key in [key for key in kept if key[0] == directory]:
                    del kept[key]
            site = None
        site = site or Site.open(directory, self.views, device=self._device, passphrase=self._passphrase)
        self._sites[directory] = site
        if len(self._sites) > _OPEN_SITES:
            self._sites.popitem(last=False)[1].close()
        return site

    def model(self, study: Study, device: torch.device) -> nn.Module:
        """A model for ``study`` on ``device``, built once and restored in place for every message."""
        key = (study.hash, str(device))  # an installed model may depend on anything in a study
        model = self._models.pop(key, None)
        if model is None:
            model = build(study, seed_for(study.seed, 0, "weights"))
            model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._models[key] = model
        if len(self._models) > 2:
            self._models.popitem(last=False)
        return model

    def scores(
        self,
        site: Site,
        study: Study,
        split: str,
        weights: Weights,
        basis: Basis | None = None,
        condition: str = "",
    ) -> Scores:
        """Scores on ``split`` under ``condition``, remembered for the second pass over the same weights."""

        def look(model: nn.Module, view: PreparedView) -> Scores:
            return predict(model, view, study, basis, alteration(condition, study))

        return self._seen(self._scores, look, (site, study, split, weights, basis), condition)

    def lesions(
        self, site: Site, study: Study, split: str, weights: Weights, basis: Basis | None = None
    ) -> Found | None:
        """The lesions of ``split``, remembered as scores are; ``None`` in a study that does not outline."""
        if not study.outlines:
            return None

        def look(model: nn.Module, view: PreparedView) -> Found:
            return find_lesions(model, view, study, basis)

        return self._seen(self._lesions, look, (site, study, split, weights, basis))

    def _seen(
        self,
        kept: OrderedDict[_Asked, T],
        look: Callable[[nn.Module, PreparedView], T],
        asked: tuple[Site, Study, str, Weights, Basis | None],
        condition: str = "",
    ) -> T:
        """What ``look`` sees in a view with a model of these weights, if it was not looked at before."""
        site, study, split, weights, basis = asked
        key = (site.directory, study.hash, f"{split} {condition}", digest(weights), basis)
        found = kept.pop(key, None)
        if found is None:
            model = self.model(study, site.device)
            restore(model, weights)
            found = look(model, site.view(study, split))  # type: ignore[arg-type]
        kept[key] = found
        if len(kept) > 16:
            kept.popitem(last=False)
        return found

    def sums(self, site: Site) -> SecureSums:
        """A virtual hospital's part in secure sums; a real one's is its agent's."""
        if site.config.state is not None:
            raise PolicyObjects("secure aggregation needs the resident agent, which remembers; run `fedward site up`")
        folder = site.directory
        return SecureSums(lambda: Peers.of(folder), SimulatedStore(folder), Releases(folder / RELEASES))

    def close(self) -> None:
        for site in self._sites.values():
            site.close()
        self._sites.clear()


def free(spent: Mechanism | None) -> None:
    """Where no ledger is kept."""


def survey(request: protocol.SurveyRequest, site: Site, spend: Spend = free) -> protocol.SurveyReply:
    study = request.task.study
    if study.privacy is None:
        spend(None)
    images = site.images(study, study.evaluation.min_cell)
    if study.counts_kept:  # whether there are any is all that a private study is told
        return protocol.SurveyReply(
            site.alias, {split: min(count, 1) for split, count in images.items()}, version("fedward")
        )
    statistics = take(site, study).to_arrays() if request.measure else None
    return protocol.SurveyReply(site.alias, images, version("fedward"), statistics)


def train(
    request: protocol.TrainRequest, site: Site, resident: Resident, spend: Spend = free
) -> protocol.TrainReply | protocol.UpdateReply:
    started = time.perf_counter()
    task, study = request.task, request.task.study
    if not all_finite(request.weights):
        raise ModelError("the weights that came are not finite; the coordinator must go on from an earlier round")
    view = site.require(study, "train")
    model = resident.model(study, site.device)
    part = OwnPart.begin(request, site, model, view)
    if study.privacy is not None:
        private = PrivateFit(model, view, study, task.round)
        spend(private.spends)
        fit, seconds = private.run(), 0.0
    else:
        spend(None)
        seed = FitSeed(study.seed, task.repeat, site.alias, task.round)
        fit = LocalFit(model, view, study, seed, task.basis, part.correction).run()
        seconds = time.perf_counter() - started
        if study.counts_kept:
            fit, seconds = replace(fit, examples=1, loss=None), 0.0
    whole = part.end()  # encoded before the model changes
    state: Weights = {name: whole[name] for name in changing_names(model) if name in whole}
    names = tuple(name for name in trainable_names(model) if name in state)
    if task.summed is not None:
        state = _summable(state, request, names, task.summed.clip)
    if task.compression == "none":
        return protocol.TrainReply(site.alias, task.round, state, fit.examples, fit.loss, seconds, part.pace)
    update = compressed(request, site, state, names)
    return protocol.UpdateReply(site.alias, task.round, update, fit.examples, fit.loss, seconds)


def _summable(after: Weights, request: protocol.TrainRequest, names: tuple[str, ...], clip: float) -> Weights:
    """A fit's weights as they may enter a secure sum: clipped; under ``noise: sites`` in steps, with noise."""
    study, before = request.task.study, {name: request.weights[name] for name in after}
    if study.central_privacy is None:
        return clipped(after, before, names, clip)
    shares = shares_of(study, sum(after[name].size for name in names))
    return noised_steps(after, before, names, shares)


def train_masked(request: protocol.TrainRequest, site: Site, resident: Resident, spend: Spend = free) -> protocol.Reply:
    """As :func:`train`; masked, where the study sums under masks."""
    if request.secured is None:
        return train(request, site, resident, spend)
    sums = resident.sums(site)
    sums.join(request)  # before hours of work
    plain = train(request, site, resident, spend)
    assert isinstance(plain, protocol.TrainReply)  # nothing is compressed under masks
    return sums.masked(request, plain)


def evaluate(request: protocol.EvaluateRequest, site: Site, resident: Resident) -> protocol.StatisticsReply:
    started = time.perf_counter()
    study = request.task.study
    scores = _scores(request, site, resident)
    if request.beside is not None:
        found = comparing.tables(request, request.beside, scores, site, resident)
    elif request.by:
        found = count_by(request, site, scores)
    else:
        found = first_pass(scores, study, study.evaluation.min_cell).to_arrays()
    chosen = _chosen(request, site, resident, scores)
    seconds = time.perf_counter() - started
    return protocol.StatisticsReply(site.alias, request.task.round, found, seconds, chosen)


def _scores(request: protocol.EvaluateRequest | protocol.MomentsRequest, site: Site, resident: Resident) -> Scores:
    weights = _weights(request, site, resident)
    return resident.scores(site, request.task.study, request.split, weights, request.task.basis, request.condition)


def _weights(request: protocol.EvaluateRequest | protocol.MomentsRequest, site: Site, resident: Resident) -> Weights:
    """Those that came, or of the site's own model."""
    if request.personal is None:
        return request.weights
    return own_weights(request.task, site, resident, request.weights, request.personal)


def _chosen(request: protocol.EvaluateRequest, site: Site, resident: Resident, own: Scores) -> str:
    """Which of its two models this site would run, where both can be scored on its validation images."""
    task, personal = request.task, request.task.personal
    if request.personal is None or personal is None or personal.split or request.split != "val":
        return ""
    of_all = resident.scores(site, task.study, request.split, request.weights, task.basis)
    return choose("global", {"global": of_all, "personal": own}, fewest=task.study.evaluation.min_cell)


def moments(request: protocol.MomentsRequest, site: Site, resident: Resident) -> protocol.StatisticsReply:
    started = time.perf_counter()
    study = request.task.study
    scores = _scores(request, site, resident)
    if request.beside is not None:
        found = comparing.spreads(request, request.beside, scores, site, resident)
    elif request.by:
        found = moments_by(request, site, scores)
    else:
        question, lesions = Question.from_arrays(request.reference, study), None
        if question.outline is not None and not request.condition:
            weights = _weights(request, site, resident)
            lesions = resident.lesions(site, study, request.split, weights, request.task.basis)
        found = second_pass(scores, lesions, question, study.evaluation.min_cell).to_arrays()
    return protocol.StatisticsReply(site.alias, request.task.round, found, time.perf_counter() - started)


def suppressed(request: protocol.EvaluateRequest | protocol.MomentsRequest) -> bool:
    """Whether what was asked for may not leave: no noise covers it."""
    study = request.task.study
    return study.metrics_suppressed or (study.counts_kept and request.split == "train")


def handle(
    message: Message,
    locate: Callable[[], Path],
    resident: Resident,
    permit: Permit | None = None,
    spend: Spend = free,
) -> Message:
    """Answer one message. Whatever goes wrong leaves as a code; its text goes to this machine's log."""
    alias = "unknown"
    try:
        request = protocol.open_request(message)
        if isinstance(request, protocol.DeliveryRequest):
            raise PackageError("finished models are taken by the resident agent only; run `fedward site up`")
        directory = locate()
        if permit is not None:
            permit(directory, request.task.study)
        site = resident.site(directory)
        alias = site.alias
        if site.config.threads and torch.get_num_threads() != site.config.threads:
            torch.set_num_threads(site.config.threads)
        reply: protocol.Reply
        if isinstance(request, secure.PhaseRequest):
            return protocol.answer(resident.sums(site).answer(request), message)
        if not isinstance(request, protocol.SurveyRequest) or request.measure:
            site.note_use(request.task.study)
        if isinstance(request, protocol.SurveyRequest):
            reply = survey(request, site, spend)
        elif isinstance(request, protocol.TrainRequest):
            masked = train_masked if resident.masks else train
            reply = masked(request, site, resident, spend)
        elif suppressed(request):
            raise PrivacyError("the study's privacy lets no counts leave; its privacy.evaluation is suppressed")
        else:
            spend(None)
            if isinstance(request, protocol.MomentsRequest):
                reply = moments(request, site, resident)
            else:
                reply = evaluate(request, site, resident)
        return protocol.answer(reply, message)
    except FedwardError as error:
        logger.error("%s: %s", alias, error)
        return protocol.answer(protocol.Refusal(alias, error.code), message)
    except Exception:
        logger.exception("%s: unexpected failure", alias)
        return protocol.answer(protocol.Refusal(alias, "internal-error"), message)


def make_app(locate: Locate, resident: Resident | None = None, *, permit: Permit | None = None) -> ClientApp:
    """A ClientApp whose sites ``locate`` finds from Flower's context, and ``permit`` lets work."""
    home = resident

    def answer(message: Message, context: Context) -> Message:
        nonlocal home
        home = home or Resident()
        return handle(message, lambda: locate(context), home, permit)

    app = ClientApp()
    app.query("survey")(answer)
    app.query("model")(answer)
    for phase in ("keys", "shares", "survivors", "unmask"):
        app.query(phase)(answer)
    app.train("fit")(answer)
    app.evaluate("scores")(answer)
    app.evaluate("moments")(answer)
    return app


class Directories:
    """Locates simulated sites: partition id -> directory. Picklable, for Ray's actors."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = [Path(directory) for directory in directories]

    def __call__(self, context: Context) -> Path:
        index = int(context.node_config["partition-id"])
        if index >= len(self._directories):
            raise VaultError(f"node {index} plays no site; this run has {len(self._directories)}")
        return self._directories[index]


app = make_app(locate_by_config, permit=permit)
