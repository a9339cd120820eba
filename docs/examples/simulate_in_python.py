"""Federated against alone against pooled, from Python.

Run it as a script (`python docs/examples/simulate_in_python.py`, under a minute on two cores), or cell by
cell in an editor that knows `# %%`, or paste the cells into a Jupyter notebook. It needs no data: the
images are phantoms, synthetic chest radiographs that fedward draws itself.
"""

# %% The study: what is trained, on what, by how many hospitals.
# It is the same contract that `fedward simulate STUDY.yaml` reads, here written as a mapping; a path
# such as "configs/quickstart.yaml" does as well. What is left out has its default.

import torch

import simulations
from common.preprocess import prepare
from common.study import Study
from simulations.datasets import open_source

study = Study.parse("""
name: first steps
task: binary
classes: [normal, pneumonia]            # the second is the positive one
seed: 1                                 # everything random comes from this number
data: {phantoms: {images: 400, size: 48, difficulty: 0.3}}
image: {size: 32}
model: {name: cnn, params: {filters: [8, 16], hidden: [32]}}
training: {batch_size: 16, local_epochs: 2}
federation: {rounds: 5, keep: best}
partition: {kind: dirichlet, sites: 3, alpha: 1.0, min_per_site: 40}
evaluation: {bootstrap: 500}
""")

# %% Run it: three virtual hospitals, each with an encrypted vault of its own.
# Three arms are trained on the same splits: federated, each hospital alone ("local"), and pooled, which
# no real hospital would allow. The run's folder is runs/<time>-first-steps unless `out=` names another.

run = simulations.simulate(study)

# %% What came out. The last expression of a notebook's cell is shown, so there `run` alone gives a table.

print(run)
print("one self-contained page with everything:", run.report)

# %% Metrics as a pandas data frame: a row per arm, site and metric, with its 95% interval.
# `site` is whose row it is and `tested_on` whose test patients: "all", or the hospital's own.

auc = run.metrics[run.metrics["metric"] == "auc"]
table = auc[auc["site"] == auc["tested_on"]].pivot(index="site", columns="arm", values="value")
print("\nAUC of each arm, on all test patients and on each hospital's own:")
print(table.round(3).to_string())

# %% Who gained? Do not compare two intervals by eye: the arms were tested on the same patients, so their
# difference is bootstrapped by patient. Above 0 at the lower bound, federating was better.

gains = run.differences.query("metric == 'auc' and on == 'all'")[["a", "b", "value", "low", "high"]]
print("\nAUC, a minus b:")
print(gains.round(3).to_string(index=False))

# %% Who holds what? A row per hospital and split, with a column for each class.

print("\nlabelled images:")
print(run.sites[["site", "split", "images", "patients", "n_normal", "n_pneumonia"]].to_string(index=False))

# %% How training went: a row per round and model.

history = run.history.query("arm == 'federated'")
print("\nthe federated arm:")
print(history[["round", "train_loss", "val_loss", "val_auc", "kept"]].round(3).to_string(index=False))

# %% The report's figures, as matplotlib figures. In a notebook each is shown where it is made.

for name, figure in {"roc": run.roc(), "learning": run.learning_curves(), "partition": run.partition()}.items():
    figure.savefig(run.path / f"{name}.png", dpi=120)
    print("drawn:", run.path / f"{name}.png")

# %% The model: a torch module with the run's weights, in evaluation mode. An image goes through the same
# preprocessing that the hospitals used; a binary model gives one logit, of the second class.

model = run.model()
source = open_source(run.study, None)  # the phantoms again; a path would open a folder of images
item = source.items[0]
pixels, _ = source.read(item)
image = torch.from_numpy(prepare(pixels, run.study)).unsqueeze(0).float() / 255
with torch.no_grad():
    score = torch.sigmoid(model(image)).item()
print(f"\nscore for pneumonia {score:.2f}, label {item.labels['label'][0]}")

# %% Change one thing and compare. `derive` makes a checked copy of the study; `data` takes a folder of
# images, a public dataset, or vaults that exist. Here the run's own vaults are used: the same hospitals,
# the same patients in the same splits, another strategy.

other = run.study.derive(
    **{
        "name": "fedprox",
        "federation.strategy": {"name": "fedprox", "params": {"proximal_mu": 0.1}},
        "partition": {"kind": "natural", "column": "site"},
    }
)
prox = simulations.simulate(other, data=run.path, arms=["federated"], quiet=True)
for each in (run, prox):
    found = each.metrics.query("arm == 'federated' and site == 'all' and metric == 'auc'").iloc[0]
    print(f"{each.study.federation.strategy.name}: AUC {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
