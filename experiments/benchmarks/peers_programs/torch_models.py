"""The exported network in PyTorch: layers, weights there and back, plain local training."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn


def build(net: dict[str, Any], weights: dict[str, np.ndarray]) -> nn.Sequential:
    """The network with its initial weights, channels first as PyTorch has them.

    Args:
      net: `exports.Net` as a dict.
      weights: kernels ``[h, w, in, out]`` and ``[in, out]``, biases ``[out]``.
    """
    layers: list[nn.Module] = []
    size, _, channels = net["input_shape"]
    for width, pool in zip(net["features"], net["pool_after"]):
        layers += [nn.Conv2d(channels, width, net["kernel_size"]), nn.ReLU()]
        size, channels = size - net["kernel_size"] + 1, width
        if pool:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    if net["conv_dropout"]:
        layers.append(nn.Dropout(net["conv_dropout"]))
    layers.append(nn.Flatten())
    inputs = size * size * channels
    for width in net["hidden"]:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        if net["dense_dropout"]:
            layers.append(nn.Dropout(net["dense_dropout"]))
        inputs = width
    layers.append(nn.Linear(inputs, net["num_classes"]))
    if net["sigmoid_outputs"]:
        layers.append(nn.Sigmoid())
    model = nn.Sequential(*layers).to(torch.from_numpy(weights["head/bias"]).dtype)
    load(model, weights)
    return model


def named_layers(model: nn.Sequential) -> dict[str, nn.Module]:
    """Layers with weights by the names of the export: conv1, ..., dense1, ..., head."""
    convs = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    return (
        {f"conv{i + 1}": layer for i, layer in enumerate(convs)}
        | {f"dense{i + 1}": layer for i, layer in enumerate(linears[:-1])}
        | {"head": linears[-1]}
    )


def load(model: nn.Sequential, weights: dict[str, np.ndarray]) -> None:
    """Copies exported weights into the model."""
    channels = None
    with torch.no_grad():
        for name, layer in named_layers(model).items():
            kernel = weights[f"{name}/kernel"]
            if kernel.ndim == 4:
                kernel, channels = kernel.transpose(3, 2, 0, 1), kernel.shape[3]
            else:
                if channels is not None:  # the first dense layer reads pixels channels first
                    pixels = kernel.reshape(-1, channels, kernel.shape[1])
                    kernel, channels = pixels.swapaxes(0, 1).reshape(kernel.shape), None
                kernel = kernel.T
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
            layer.bias.copy_(torch.from_numpy(weights[f"{name}/bias"]))


def export(model: nn.Sequential) -> dict[str, np.ndarray]:
    """The model's weights as `load` reads them."""
    weights: dict[str, np.ndarray] = {}
    channels = None
    for name, layer in named_layers(model).items():
        kernel = layer.weight.detach().numpy()
        if kernel.ndim == 4:
            channels = kernel.shape[0]
            kernel = kernel.transpose(2, 3, 1, 0)
        else:
            kernel = kernel.T
            if channels is not None:
                pixels = kernel.reshape(channels, -1, kernel.shape[1])
                kernel, channels = pixels.swapaxes(0, 1).reshape(kernel.shape), None
        weights[f"{name}/kernel"] = np.array(kernel)
        weights[f"{name}/bias"] = np.array(layer.bias.detach().numpy())
    return weights


def clients(task: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every client's images `[n, channels, height, width]` and labels, views of one array."""
    x, y = torch.from_numpy(task.array("x_float")), torch.from_numpy(task.array("y")).long()
    bounds = task.array("offsets").tolist()
    return [(x[low:high], y[low:high]) for low, high in itertools.pairwise(bounds)]


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, task: Any) -> None:
    """Local SGD, every epoch a fresh permutation; the last batch of an epoch may be short."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate)
    size = task.batch_size or len(x)
    for _ in range(task.epochs):
        for rows in torch.randperm(len(x)).split(size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
