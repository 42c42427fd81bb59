"""What clients do for models of their own is told with its settings."""

import optax
import pytest

import fedjax_lite as fl


def loss(params, examples, key):
    return params["head"] * examples["x"]


PLAN, OTHER = fl.Plan(batch_size=10), fl.Plan(batch_size=5, epochs=3)
SGD, MORE = optax.sgd(0.125), optax.sgd(0.375, momentum=0.75)
CASES = {
    "ditto": (
        {"pull": 0.625},
        ["SGD with learning rate 0.125 on the same batches", "(pull 0.625)", "keep: its own model"],
    ),
    "ditto with its own work": (
        {"pull": 0.625, "personal_optimizer": MORE, "personal_plan": OTHER, "keep_optimizer": True},
        ["momentum 0.75 and learning rate 0.375 for 3 epochs in batches of 5", "state kept"],
    ),
    "apfl": ({"mixing": 0.25}, ["(0.25 of it)", "keep: its own model and its share"]),
    "apfl adaptive": (
        {"mixing": 0.25, "mixing_rate": 0.0625, "variant": "unscaled"},
        ["0.25 of it at first, adapted", "0.0625", "without the factor"],
    ),
    "pfedme": (
        {"learning_rate": 0.0625, "pull": 7.0, "inner_steps": 4},
        ["(pull 7), 4 of the local steps", "learning rate 0.0625", "keep: its proximal point"],
    ),
    "fedrep": (
        {"head_plan": OTHER, "head_optimizer": MORE},
        ["heads, before the body", "learning rate 0.375 for 3 epochs in batches of 5", "its head"],
    ),
    "fedrep with heads on rows held out": (
        {"head_data": "held_out"},
        [
            "Local work: 1 epoch in batches of 10 (head, on 'held_out', data of its own), "
            "then 1 epoch in batches of 10."
        ],
    ),
    "fedbabu": ({}, ["the head stays as it was drawn"]),
    "lg_fedavg": ({}, ["LG-FedAvg", "keep: its body"]),
}


@pytest.mark.parametrize("case", CASES)
def test_own_models_are_told(case):
    options, words = CASES[case]
    algo = getattr(fl, case.split()[0])(loss, SGD, plan=PLAN, sampler=fl.everyone(), **options)
    text = " ".join(fl.describe(algo).split())
    assert not [one for one in words if one not in text], text
    assert ("Own models:" in text) == (not case.startswith("lg"))
