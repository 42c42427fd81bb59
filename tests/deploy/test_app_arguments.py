"""What apps are made of is refused by name; without Flower or NVFlare, the remedy is named."""

import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import deploy
from fedjax_lite.crypto.prg import primitives

KEY, START = jax.random.key(0), jnp.float32(0)
EXAMPLES = {"b": jnp.ones(3)}
ALGO = fl.fedavg(
    lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
    optax.sgd(0.5),
    plan=fl.Plan(batch_size=1),
    sampler=fl.everyone(),
)
CLIENT = {"algo": ALGO, "key": KEY, "params": START, "examples": EXAMPLES}
SERVER = {"algo": ALGO, "key": KEY, "params": START, "num_rounds": 1}
VALID = {
    "flower_client": CLIENT,
    "flower_server": {**SERVER, "num_clients": 2},
    "flare_client": CLIENT,
    "flare_server": SERVER,
    "flower_answers": {"answer_of": lambda config: bytes.upper},
}
BAD = {
    "algo": "fedavg",
    "key": 3,
    "params": "zeros",
    "num_clients": 0,
    "num_rounds": -1,
    "timeout": 0.0,
    "min_clients": 0,
    "on_refusal": "ignore",
    "retries": -1,
    "patience": "soon",
    "when_given_up": "ignore",
    "bind": "no",
    "answer_of": b"hello",
}
LATER = ("timeout", "min_clients", "on_refusal", "retries", "patience", "when_given_up")
CASES = [
    (made, name)
    for made, valid in VALID.items()
    for name in BAD
    if name in valid
    or (name in LATER and "num_rounds" in valid)
    or (name, made) == ("bind", "flower_server")
]


@pytest.mark.parametrize(("made", "name"), CASES)
def test_bad_arguments_are_refused_before_anything_runs(made, name):
    with pytest.raises((TypeError, ValueError), match=name):
        getattr(deploy, made)(**VALID[made] | {name: BAD[name]})


SECURE = deploy.SecureSettings(2)
SIGNED = deploy.SecureSettings(3, identities={i: bytes([i] * 32) for i in range(4)})
SUMS = fl.fedavg(
    lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
    optax.sgd(0.5),
    plan=fl.Plan(batch_size=1),
    sampler=fl.everyone(),
    aggregator=fl.secure_mean(max_abs=1.0),
)


@pytest.mark.parametrize("made", ["flower_client", "flower_server"])
def test_secure_aggregation_fits_the_algorithm(made):
    with pytest.raises(TypeError, match="secure must be a SecureSettings or None, got 'yes'"):
        getattr(deploy, made)(**VALID[made], secure="yes")
    with pytest.raises(ValueError, match="algo must sum integers to be aggregated securely"):
        getattr(deploy, made)(**VALID[made], secure=SECURE)


def test_an_identity_goes_with_identities():
    own = primitives().asymmetric.ed25519.Ed25519PrivateKey.generate()
    client = {**CLIENT, "algo": SUMS}
    for given, why in [
        ({"identity": own}, "must be None where secure has none, got"),
        ({"secure": SECURE, "identity": own}, "must be None where secure has none, got"),
        ({"secure": SIGNED}, "must be a private key where secure has identities, got None"),
    ]:
        with pytest.raises(TypeError, match=f"identity {why}"):
            deploy.flower_client(**client, **given)


@pytest.mark.parametrize("grid", [None, "127.0.0.1:8000", {0: b"a"}])
def test_a_grid_is_flowers(grid):
    with pytest.raises(TypeError, match="grid must be"):
        deploy.grid_exchange(grid, timeout=1.0)


@pytest.mark.parametrize("made", VALID)
def test_without_the_package_its_extra_is_named(made, monkeypatch):
    package, extra = ("flwr", "flower") if "flower" in made else ("nvflare", "nvflare")
    for name in [*sys.modules]:
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install \"fedjax_lite\[{extra}\]\""):
        getattr(deploy, made)(**VALID[made])
