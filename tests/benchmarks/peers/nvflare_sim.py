"""The same work on NVFlare's simulator."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from work import ROUNDS, SITES, Net

if __name__ == "__main__":
    os.environ["BENCH_WORK"] = str(Path(__file__).resolve().parents[1])
    recipe = FedAvgRecipe(
        name="bench",
        model=Net(),
        min_clients=SITES,
        num_rounds=ROUNDS,
        train_script=str(Path(__file__).with_name("nvflare_client.py")),
    )
    with tempfile.TemporaryDirectory(prefix="fedward-bench-nvflare-") as folder:
        environment = SimEnv(
            num_clients=SITES, num_threads=int(os.environ.get("BENCH_ACTORS", "2")), workspace_root=folder
        )
        print(recipe.execute(environment).get_result())
