"""Methods over columns in words, and the papers behind them."""

import numpy as np
import optax

import fedjax_lite as fl

DATA = fl.parties.from_columns(
    {"lab": np.ones((4, 2)), "clinic": np.ones((4, 3))}, {"clinic": np.zeros(4)}
)
MODEL = fl.parties.regression("logistic", DATA)


def test_every_setting_is_told():
    each = {"lab": optax.sgd(0.25), "clinic": optax.adam(0.125)}
    algo = fl.parties.vertical_sgd(
        MODEL, each, plan=fl.Plan(batch_size=7, epochs=3), uplink=fl.gaussian_noise(0.5),
        downlink=fl.qsgd(15), absence=0.0625,
    )  # fmt: skip
    text = " ".join(fl.describe(algo).split())
    for word in (
        *("Vertical SGD (Yang et al., 2019)", "clinic, lab; labels at clinic", "logistic"),
        *("3 epochs in batches of 7", "lab: SGD with learning rate 0.25", "0.125", "noise"),
        *("quantised by QSGD to 15 levels", "0.0625"),
    ):
        assert word in text, (word, text)
    assert "FedBCD" in fl.describe(
        fl.parties.fedbcd(MODEL, optax.sgd(0.1), plan=fl.Plan(None), local_steps=2)
    )


def test_what_was_replaced_is_the_users_own():
    algo = fl.parties.vertical_sgd(MODEL, optax.sgd(0.1), plan=fl.Plan(None))
    assert "your own" in fl.describe(algo._replace(round=lambda *args: None))


def test_papers():
    algo = fl.parties.fedbcd(
        MODEL, optax.sgd(0.1), plan=fl.Plan(None), local_steps=2, uplink=fl.qsgd(7)
    )
    text = fl.citation(algo)
    for key in ("liu2019communication", "hardy2017private", "alistarh2017qsgd"):
        assert key in text
