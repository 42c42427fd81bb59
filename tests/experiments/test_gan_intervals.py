"""Averages of GANs, seldom: the system's equilibrium by hand, and the files of a run of seconds."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield importlib.import_module("gan_intervals")


@pytest.mark.slow
def test_a_smoke_run(script, tmp_path):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    results = script.main(flags)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "intervals.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [row["interval"] for row in results["system"]] == [1, 5]
    # A thousand steps at a rate of 0.1 to 0.05 leave the oscillation a few hundredths.
    for row in results["system"]:
        np.testing.assert_allclose(row["theta"], 1, atol=0.1)
        np.testing.assert_allclose(row["psi"], 0, atol=0.1)
    assert len(results["parts"]) == 2
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(dataclasses.replace(flags))


def test_the_equilibrium_is_exact(script):
    gan, x = script.two_numbers(), jnp.asarray(script.segments().examples["x"])
    losses = importlib.import_module("fedjax_lite.algorithms.fedgan")
    # Noise whose cumulative distribution is at equal distances: z is uniform without chance.
    z = jax.scipy.stats.norm.ppf((jnp.arange(1000) + 0.5) / 1000)[:, None]

    @jax.jit
    def gradients(params, x, z):
        judge = jax.grad(lambda p: losses.discriminator_losses(gan, p, x, z).mean())(params)
        make = jax.grad(lambda p: losses.generator_losses(gan, p, z).mean())(params)
        return make["generator"], judge["discriminator"]

    def slopes(theta, psi):
        params = {"generator": jnp.float32(theta), "discriminator": jnp.float32(psi)}
        return tuple(map(float, gradients(params, x, z)))

    np.testing.assert_allclose(slopes(1, 0), (0, 0), atol=1e-5)
    # Elsewhere: d/dpsi = (theta^2 - 1) / 6 at psi = 0, and d/dtheta = -2 theta psi E z^2 / 2.
    np.testing.assert_allclose(slopes(1.5, 0), (0, (1.5**2 - 1) / 6), atol=1e-4)
    np.testing.assert_allclose(slopes(1, 1e-3), (-1e-3 / 3, 1e-3 / 10), atol=1e-6)


def test_agents_hold_a_fifth_each(script):
    data = script.segments()
    x = np.asarray(data.examples["x"])[:, 0].reshape(5, -1)
    np.testing.assert_allclose(x.min(1), [-1, -0.6, -0.2, 0.2, 0.6], atol=2e-3)
    np.testing.assert_allclose((x**2).mean(), 1 / 3, rtol=1e-5)


def test_intervals_must_divide_the_steps(script):
    with pytest.raises(ValueError, match="--ring-steps=30"):
        script.check(script.Flags(ring_steps=30, intervals=(20,)))


def test_the_ring_is_dealt_by_modes_or_not(script):
    owners = np.repeat(np.arange(4), 8)
    by_modes = script.held(script.Flags(), owners).reshape(4, 8)
    assert [sorted(set(row)) for row in by_modes] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    at_random = script.held(script.Flags(deal="random"), owners).reshape(4, 8)
    assert all(sorted(row) == list(range(8)) for row in at_random)
    with pytest.raises(ValueError, match="--deal"):
        script.check(script.Flags(deal="shards"))


def test_a_loss_is_told_where_it_is_sure(script):
    rows = [
        {"interval": 1, "quality": [0.9, 0.91, 0.9], "worst": [0.5, 0.6, 0.4]},
        {"interval": 5, "quality": [0.2, 0.2, 0.21], "worst": [0.6, 0.4, 0.5]},
    ]
    lost, kept = script.compared(rows)
    assert (lost["holds"], kept["holds"]) == (False, True)
