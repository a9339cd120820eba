"""NVFlare's side of a site: receives a model, trains one epoch, sends it back."""

import os
import sys

sys.path.insert(0, os.environ["BENCH_WORK"])

import nvflare.client as flare
import torch
from work import train

flare.init()
site = int(flare.get_site_name().split("-")[1]) - 1
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    state = {name: torch.as_tensor(value) for name, value in model.params.items()}
    weights, count, loss = train(state, site, int(model.current_round or 0))
    flare.send(
        flare.FLModel(
            params={name: tensor.detach().cpu() for name, tensor in weights.items()},
            metrics={"loss": loss},
            meta={"NUM_STEPS_CURRENT_ROUND": count},
        )
    )
