"""Flower's rounds: its simulation engine on ray, with a ServerApp that waits for commands.

One simulation runs as long as the worker lives. Its ServerApp's main function calls
``FedAvg.start(grid, arrays, num_rounds=k)`` for every command, so actors stay warm and only rounds
are timed, not the start of ray and of the nodes. `FedAvg` is subclassed in one point: messages name
the clients of the common schedule (FedAvg alone would draw others, which are other work). The
variant is the number of cores of a client: 1 (two actors side by side, a PyTorch thread each) or 2
(one actor, two threads); `peers.py` tries both and keeps the faster.

`run_simulation` is the in-process entry to the engine that `flwr run` starts through a SuperLink;
of the two it is the one without further processes. Flower looks for messages and replies every
0.1 s (twice), and this has no setting.
"""

import itertools
import time
from importlib import metadata

import flower_client
import numpy as np
import torch_models
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from worker_protocol import begin, commands

task, answers = begin()
schedule = itertools.cycle(task.array("cohorts").tolist())
cohort_size = task.array("cohorts").shape[1]
num_clients = len(task.array("offsets")) - 1


class Scheduled(FedAvg):
    """FedAvg whose messages say which client's data to train on."""

    def configure_train(self, server_round, arrays, config, grid):
        """As FedAvg does, then one client of the schedule for each message."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, client in zip(messages, next(schedule), strict=True):
            content = {"arrays": arrays, "config": ConfigRecord({**config, "client": client})}
            message.content = RecordDict(content)
        return messages


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Answers commands until the input ends; then the simulation ends, too."""
    model = torch_models.build(task.net, task.weights())
    arrays = ArrayRecord(model.state_dict())
    strategy = Scheduled(
        fraction_train=cohort_size / num_clients,
        fraction_evaluate=0.0,
        min_train_nodes=cohort_size,
        min_available_nodes=num_clients,
    )
    packages = ("flwr", "ray", "torch", "numpy")
    answers.send(versions={name: metadata.version(name) for name in packages})
    for command in commands():
        if "rounds" in command:
            number = command["rounds"]
            began = time.perf_counter()
            result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=number)
            seconds = time.perf_counter() - began
            arrays = result.arrays
            done = len(result.train_metrics_clientapp)
            if done != number:
                raise RuntimeError(f"{done} of {number} rounds had replies; see the log")
            answers.send(seconds=seconds)
        else:
            model.load_state_dict(arrays.to_torch_state_dict())
            weights = torch_models.export(model)
            np.savez(command["weights"], **weights)  # pyright: ignore[reportArgumentType]
            answers.send(written=command["weights"])


run_simulation(
    server_app=server,
    client_app=flower_client.app,
    num_supernodes=num_clients,
    backend_config={
        "init_args": {"num_cpus": task.num_threads},
        "client_resources": {"num_cpus": int(task.variant), "num_gpus": 0.0},
    },
)
