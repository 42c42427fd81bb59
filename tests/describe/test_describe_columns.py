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


def test_cut_networks():
    part = fl.parties.Part(lambda key: np.ones((2, 2)), lambda w, x, key: x @ w)
    cut = fl.parties.cut_layers([part] * 3, at=(1, 2))
    options = {"plan": fl.Plan(batch_size=5), "sampler": fl.uniform(3)}
    algo = fl.parties.splitfed(cut, optax.sgd(0.25), server_optimizer=optax.sgd(0.5), **options)
    text = " ".join(fl.describe(algo).split())
    for word in (
        *("SplitFed 1 (Thapa et al., 2020)", "3 clients, uniformly", "in three before"),
        *("labels stay", "batches of 5", "rate 0.25; the server's half: SGD", "rate 0.5"),
    ):
        assert word in text, (word, text)
    algo = fl.parties.split_learning(cut, optax.sgd(0.25), uplink=fl.clip(2.0), **options)
    assert "Split learning (Gupta and Raskar, 2018)" in fl.describe(algo)
    assert "activations are sent clipped to L2 norm 2" in fl.describe(algo)
    assert "vepakomma2018split" in fl.citation(algo)
