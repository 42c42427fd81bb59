"""Flower's ClientApp: PyTorch training of one client a message, its data in memory."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
import torch_models
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from worker_protocol import read_task

app = ClientApp()


@functools.cache
def loaded() -> tuple:
    """Task, clients and model, once in an actor's life: faster than a new model a message."""
    task = read_task(Path(os.environ["PEERS_TASK"]))
    torch.set_num_threads(int(os.environ["PEERS_CLIENT_THREADS"]))
    return task, torch_models.clients(task), torch_models.build(task.net, task.weights())


@app.train()
def train(message: Message, context: Context) -> Message:
    """Local training from the server's arrays; the client is the one that the schedule names."""
    task, clients, model = loaded()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = clients[message.content["config"]["client"]]
    torch_models.train(model, x, y, task)
    weight = 1 if task.weighting == "uniform" else len(x)
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": weight}),
    }
    return Message(content=RecordDict(content), reply_to=message)
