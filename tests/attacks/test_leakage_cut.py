"""What crosses a cut tells: labels by returned gradients, inputs by activations."""

import functools
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.attacks.leakage import invert_smashed, label_leakage, psnr

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def by_pairs(scores, positive):
    """AUC by its definition: all pairs."""
    pairs = scores[positive][:, None] - scores[~positive][None]
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))


def test_scores_by_definition():
    gradients, labels = RNG.normal(size=(40, 3)), RNG.integers(0, 3, 40)
    gradients[:6] = gradients[6:12]  # ties
    found = label_leakage(gradients, labels, positive=2, known=int(np.flatnonzero(labels == 2)[3]))
    norms = np.linalg.norm(gradients, axis=1)
    known = np.flatnonzero(labels == 2)[3]
    cosines = gradients @ gradients[known] / norms / norms[known]
    assert found.norm_auc == pytest.approx(by_pairs(norms, labels == 2))
    rest = np.arange(40) != known
    assert found.direction_auc == pytest.approx(by_pairs(cosines[rest], (labels == 2)[rest]))
    assert (found.num_positive, found.num_negative) == ((labels == 2).sum(), (labels != 2).sum())


def test_residuals_tell_labels_and_noise_hides_them():
    """Before training all residuals are 1/2 in size, so that only the sign tells; with noise of
    deviation s on residuals 1/2 and -1/2 the direction's AUC is Phi(1 / (s sqrt 2))."""
    n = 4000
    y = (RNG.random(n) < 0.3).astype(np.float32)
    x = {"a": RNG.normal(size=(n, 1)), "b": RNG.normal(size=(n, 1))}
    data = fl.parties.from_columns(
        {party: v.astype(np.float32) for party, v in x.items()}, {"a": y}
    )
    model = fl.parties.regression("logistic", data)
    params = model.init(KEY)
    plain = fl.parties.wiretap(model, params, data, key=KEY)
    assert set(plain.gradients) == {"b"}  # the holder gets nothing back
    np.testing.assert_allclose(plain.gradients["b"], (0.5 - y) / n, rtol=1e-6)
    found = label_leakage(plain.gradients["b"], y)
    assert found.direction_auc == 1
    assert found.norm_auc == 0.5
    deviation = 1.5
    noise = fl.gaussian_noise(deviation / n)
    noisy = fl.parties.wiretap(model, params, data, key=KEY, downlink=noise).gradients["b"]
    # A cosine of single numbers is their sign, right with probability p, and so is the known one's:
    # the AUC is p or 1 - p. The number itself, as a score, tells more.
    auc = by_pairs(-np.asarray(noisy), y == 1)
    assert auc == pytest.approx(NormalDist().cdf(1 / (deviation * 2**0.5)), abs=0.03)
    right = NormalDist().cdf(0.5 / deviation)
    found = label_leakage(noisy, y).direction_auc
    assert abs(found - 0.5) == pytest.approx(right - 0.5, abs=0.03)


def dense(size, out):
    return fl.parties.Part(
        lambda key: jax.random.normal(key, (size, out)) / 2, lambda w, x, key: jnp.tanh(x @ w)
    )


LAYERS = [dense(6, 8), dense(8, 6), dense(6, 2)]
EXAMPLES = {
    "x": np.random.default_rng(1).random((5, 6)).astype(np.float32),
    "y": np.array([0, 1, 1, 0, 1]),
}


@pytest.fixture(scope="module")
def cut():
    return fl.parties.cut_layers(LAYERS, at=1)


def test_inputs_from_activations(cut):
    """Eight activations tell six inputs; on noise they do not; the gradients are the network's."""
    params = cut.model.init(jax.random.key(1))
    x, examples = EXAMPLES["x"], EXAMPLES

    @jax.jit
    def tapped(params):
        tap = functools.partial(fl.parties.wiretap, cut, params, examples, key=KEY)
        return tap(), tap(uplink=fl.gaussian_noise(1.0))

    quiet, loud = tapped(params)
    np.testing.assert_allclose(quiet.activations, np.tanh(x @ np.asarray(params[0])), rtol=1e-5)

    def bottom(x):
        return jnp.tanh(x @ params[0])

    def upper(h):
        logits = cut.stages[1](params, h, None)
        return fl.models.cross_entropy(logits, jnp.asarray(examples["y"])).mean()

    np.testing.assert_allclose(
        quiet.gradients, jax.jit(jax.grad(upper))(quiet.activations), rtol=1e-4, atol=1e-7
    )
    similar = []
    for heard in (quiet, loud):
        found = invert_smashed(
            bottom, heard.activations, input_shape=(6,), key=KEY, num_iterations=300
        )
        similar.append(np.mean(psnr(found.x, x)))
    assert similar[0] > 40 > 15 > similar[1]


def test_what_goes_up_in_a_u_tells_labels(cut):
    """The gradient at the server's activations, whose directions are two, one a class."""
    tap = jax.jit(lambda params: fl.parties.wiretap(cut, params, EXAMPLES, key=KEY))
    assert tap(cut.model.init(KEY)).upward is None
    u = fl.parties.cut_layers(LAYERS, at=(1, 2))
    params = u.model.init(jax.random.key(1))
    tapped = jax.jit(lambda params: fl.parties.wiretap(u, params, EXAMPLES, key=KEY))(params)

    def of_client(h):
        logits = u.stages[2](params, h, None)
        return fl.models.cross_entropy(logits, jnp.asarray(EXAMPLES["y"])).mean()

    gradient = jax.jit(lambda a: jax.grad(of_client)(u.stages[1](params, a, None)))
    np.testing.assert_allclose(tapped.upward, gradient(tapped.activations), rtol=1e-4, atol=1e-7)
    assert label_leakage(tapped.upward, EXAMPLES["y"]).direction_auc == 1


def test_refusals(cut):
    params: Any = cut.model.init(KEY)
    with pytest.raises(ValueError, match="must hold two of class 1 and some of another"):
        label_leakage(np.eye(2), np.array([0, 1]))
    with pytest.raises(ValueError, match="known must be an example of class 1, got 0"):
        label_leakage(np.eye(3), np.array([0, 1, 1]), known=0)
    with pytest.raises(ValueError, match="gradients must be finite"):
        label_leakage(np.full((3, 1), np.nan), np.array([0, 1, 1]))
    with pytest.raises(TypeError, match=r"examples must be .* for a cut network"):
        fl.parties.wiretap(cut, params, {"x": jnp.ones((2, 6))}, key=KEY)
    with pytest.raises(TypeError, match="model must be a CutModel or a VerticalModel"):
        fl.parties.wiretap(cut.model, params, {}, key=KEY)
