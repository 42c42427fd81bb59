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


LINEAR = fl.models.linear(2, (3,))
PAIR = fl.models.mlp_gan(3, latent_size=1, hidden=(4,))
PARTS = fl.models.adversarial(LINEAR, LINEAR, LINEAR)
COHORT = {"plan": PLAN, "sampler": fl.everyone()}
ASKED = {"plan": PLAN, "concurrency": 2, "latency": lambda key, info, traffic: 1.0}
KEPT = {
    "fedma": (fl.fedma(LINEAR.loss, SGD, **COHORT), "its own network"),
    "ca2fl": (fl.ca2fl(loss, SGD, **ASKED), "its last update"),
    "fedgan": (fl.fedgan(PAIR, SGD, SGD, **COHORT), ""),
    "fedgan's own": (fl.fedgan(PAIR, SGD, SGD, share="generator", **COHORT), "its discriminator"),
    "debiasing": (fl.debiasing(PARTS, SGD, strength=1.0, **COHORT), ""),
    "debiasing's own": (
        fl.debiasing(PARTS, SGD, strength=1.0, adversary="client", **COHORT),
        "its adversary",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_clients_keep_is_told(case):
    algo, what = KEPT[case]
    lines = [line.strip() for line in fl.describe(algo).splitlines()]
    assert [line for line in lines if "Clients keep" in line] == (
        [f"Clients keep: {what}."] if what else []
    )


@pytest.mark.parametrize("case", CASES)
def test_own_models_are_told(case):
    options, words = CASES[case]
    algo = getattr(fl, case.split()[0])(loss, SGD, plan=PLAN, sampler=fl.everyone(), **options)
    text = " ".join(fl.describe(algo).split())
    assert not [one for one in words if one not in text], text
    assert ("Own models:" in text) == (not case.startswith("lg"))
