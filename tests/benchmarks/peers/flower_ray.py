"""The same work on Flower's own simulation: one Ray actor a core, each with one torch thread."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from work import ROUNDS, SITES, initial, train

client, server = ClientApp(), ServerApp()


@client.train()
def fit(message: Message, context: Context) -> Message:
    state = message.content["arrays"].to_torch_state_dict()
    round_ = int(message.content["config"]["server-round"]) - 1
    weights, count, loss = train(state, int(context.node_config["partition-id"]), round_)
    metrics = MetricRecord({"loss": loss, "num-examples": count})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=SITES, min_train_nodes=SITES)
    found = strategy.start(grid=grid, initial_arrays=ArrayRecord(initial()), num_rounds=ROUNDS)
    if len(found.train_metrics_clientapp) != ROUNDS:
        raise SystemExit("not every round was trained")
    print(found.train_metrics_clientapp)


if __name__ == "__main__":
    actors = int(os.environ.get("BENCH_ACTORS", "2"))
    run_simulation(
        server,
        client,
        SITES,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": actors, "include_dashboard": False, "log_to_driver": False},
        },
    )
