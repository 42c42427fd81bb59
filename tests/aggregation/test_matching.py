"""Matched averages: copies come back exactly, assignments are scipy's, widths grow as they must."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import fedjax_lite as fl
from fedjax_lite.aggregation.matching.atoms import costs_of

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MT = fl.matching


def shuffled(params, seed):
    """The same function, every hidden layer in another order."""
    rng = np.random.default_rng(seed)
    layers = MT.hidden_layers(params)
    orders = [rng.permutation(layer.width) for layer in layers]

    @jax.jit
    def turned(params, orders):
        for layer, order in zip(layers, orders, strict=True):
            params = MT.reorder(params, layer, order)
        return params

    return turned(params, orders)


def stacked(*models):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *models)


def test_assignments_are_scipys():
    costs = np.concatenate([RNG.normal(size=(20, 4, 6)), [np.ones((4, 6))]])
    found = jax.jit(jax.vmap(MT.assignment))(costs)
    for cost, columns in zip(costs, found, strict=True):
        rows, best = linear_sum_assignment(cost)
        assert len(set(columns.tolist())) == 4
        np.testing.assert_allclose(
            cost[np.arange(4), columns].sum(), cost[rows, best].sum(), rtol=1e-6
        )
    assert MT.assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]]).tolist() == [1, 0, 2]


def test_costs_that_are_no_numbers_do_not_hang_a_compiled_program():
    """They are more than all others together: finite ones decide where there are any."""
    find, nan, inf = jax.jit(MT.assignment), np.nan, np.inf
    some = np.array([[nan, 1.0, 3.0], [2.0, nan, inf], [nan, -4.0, 3.0]], np.float32)
    assert find(some).tolist() == [2, 0, 1]  # 3 + 2 - 4; the one other finite choice is 1 + 2 + 3
    low = np.array([[5.0, -inf, 5.0], [0.0, 1.0, 9.0], [0.0, 9.0, 1.0]], np.float32)
    assert find(low).tolist() == [1, 0, 2]
    for costs in (np.full((3, 3), nan), np.full((3, 3), 3e38), np.full((3, 3), inf)):
        assert sorted(find(costs.astype(np.float32)).tolist()) == [0, 1, 2]


def test_the_known_network_comes_back():
    """KNOWN_ANSWERS 9: W1 = C(5, 3), W2 = sin(i + j^2), hidden order (2, 0, 4, 1, 3)."""
    with jax.enable_x64(True):
        W1 = np.cos(np.outer(range(5), range(3)) + 1)
        W2 = np.sin(np.arange(2)[:, None] + np.arange(5.0) ** 2)
        net = {"dense1": {"kernel": W1.T}, "head": {"kernel": W2.T}}
        twin = MT.reorder(net, MT.hidden_layers(net)[0], np.array([2, 0, 4, 1, 3]))
        both = stacked(net, twin)
        found = MT.matched_average(both)
        x = np.array([0.5, -1.0, 2.0])
        hidden = np.maximum(x @ np.asarray(found["dense1"]["kernel"]), 0)
        answer = hidden @ np.asarray(found["head"]["kernel"])
        np.testing.assert_allclose(answer, (-0.3809253450, -2.3932717188), atol=1e-9)
        naive = jax.tree.map(lambda leaf: leaf.mean(0), both)
        hidden = np.maximum(x @ np.asarray(naive["dense1"]["kernel"]), 0)
        answer = hidden @ np.asarray(naive["head"]["kernel"])
        np.testing.assert_allclose(answer, (-0.1239749665, -0.1977875735), atol=1e-9)


@pytest.fixture(params=["dense", "convolutions", "lstm"])
def network(request):
    """A chain, its parameters without zeros, and an input."""
    if request.param == "dense":
        model, x = (
            fl.models.mlp((6, 5, 4), num_classes=3, input_shape=(4,)),
            RNG.normal(size=(2, 4)),
        )
    elif request.param == "convolutions":
        model = fl.models.conv_net((4,), (5,), num_classes=3, input_shape=(8, 8, 1))
        x = RNG.normal(size=(2, 8, 8, 1))
    else:
        model = fl.models.char_lstm(7, embedding_size=3, hidden_size=4, num_layers=2)
        x = RNG.integers(0, 7, (2, 5))
    x = x.astype(np.float32) if x.dtype.kind == "f" else x
    params = jax.tree.map(
        lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(model.init, KEY),
    )
    return model, params, {"x": x, "y": np.zeros(x.shape[:1] if x.ndim != 2 else x.shape, int)}


def test_permuted_copies_of_chains_give_the_network_back_in_every_bit(network):
    model, params, examples = network
    twins = [shuffled(params, seed) for seed in (1, 2)]
    for leaf, other in zip(*map(jax.tree.leaves, (params, twins[0])), strict=True):
        assert leaf.shape == other.shape
    assert any(
        bool((leaf != other).any())
        for leaf, other in zip(*map(jax.tree.leaves, (params, twins[0])), strict=True)
    )
    predict = jax.jit(model.predict)
    np.testing.assert_allclose(
        predict(params, examples), predict(twins[0], examples), rtol=2e-4, atol=1e-4
    )
    found = MT.matched_average(stacked(params, *twins), weights=[5, 1, 2])
    for mine, theirs in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def plain_costs(units, others, size, sigma, sigma0, gamma, capacity):
    """PFNM's costs by loops: `others` are lists of units, one an atom."""
    table = np.zeros((len(units), capacity))
    for l, j in itertools.product(range(len(units)), range(capacity)):  # noqa: E741
        v = units[l] / sigma**2
        if j < len(others):
            s = np.sum(others[j], 0) / sigma**2
            m = len(others[j])
            q = 1 / sigma0**2 + m / sigma**2
            gain = (s + v) @ (s + v) / (q + 1 / sigma**2) - s @ s / q + 2 * np.log(m / (size - m))
        else:
            gain = v @ v / (1 / sigma0**2 + 1 / sigma**2)
            gain -= 2 * np.log((j - len(others) + 1) * size / gamma)
        table[l, j] = -gain
    return table


def test_costs_of_pfnm_by_loops():
    units, others = RNG.normal(size=(3, 2)), [RNG.normal(size=(m, 2)) for m in (1, 2, 2)]
    sums = np.array([np.sum(atom, 0) / 0.7**2 for atom in others] + [np.zeros(2)] * 4)
    counts = np.array([len(atom) for atom in others] + [0] * 4)
    noise = jnp.full(1, 0.7**-2)
    found = costs_of(
        *map(jnp.asarray, (units, sums, counts[:, None] * noise, counts)), 4, noise, 3.0**-2,
        jnp.zeros(2), 1.5,
    )  # fmt: skip
    shared = (units**2).sum(-1, keepdims=True) / 0.7**2  # of all atoms of a unit: left out
    expected = plain_costs(units, others, 4, 0.7, 3.0, 1.5, 7) + shared
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_costs_of_units_far_from_zero_keep_their_digits():
    """Squares of 1e6 beside distances of about 1, in float32; the loops are in float64."""
    units = np.float32(1000) + RNG.normal(size=(3, 2)).astype(np.float32)
    others = [np.float32(1000) + RNG.normal(size=(m, 2)).astype(np.float32) for m in (1, 2)]
    wide = [units.astype(float), [atom.astype(float) for atom in others]]
    shared = (wide[0] ** 2).sum(-1, keepdims=True)
    expected = plain_costs(*wide, 4, 1.0, np.inf, 1.0, 2) + shared
    sums = np.array([np.sum(atom, 0) for atom in wide[1]], np.float32)
    counts = jnp.array([1, 2])
    found = costs_of(
        jnp.asarray(units), jnp.asarray(sums), counts[:, None], counts, 4, jnp.ones(1), 0.0,
        jnp.zeros(2), 1.0,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_costs_of_pfnm_by_what_is_known_of_each_weight():
    """The authors' form: squares of precision times weight, less those without the unit."""
    sure = RNG.uniform(0.1, 2, size=(4, 3))
    sure[:, 2] = 0  # a class that none of these saw
    units, others = RNG.normal(size=(2, 3)), RNG.normal(size=(3, 3))
    mine, prior, centre = sure[3], 0.3, np.array([0.1, 0.0, 0.2])
    gain = np.zeros((2, 3))
    for l, j in itertools.product(range(2), range(3)):  # noqa: E741
        g, s = (prior * centre, prior) if j else (
            prior * centre + (sure[:3] * others).sum(0), prior + sure[:3].sum(0)
        )  # fmt: skip
        gain[l, j] = ((mine * units[l] + g) ** 2 / (s + mine) - g**2 / s).sum()
        gain[l, j] += -2 * np.log(j * 4 / 0.7) if j else 2 * np.log(3 / 1)
    held = np.zeros((3, 3)), np.zeros((3, 3)), np.array([3, 0, 0])
    held[0][0], held[1][0] = (sure[:3] * others).sum(0), sure[:3].sum(0)
    found = costs_of(
        jnp.asarray(units), *map(jnp.asarray, held), 4, jnp.asarray(mine), prior,
        jnp.asarray(centre), 0.7,
    )  # fmt: skip
    shared = (mine * units**2).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, shared - gain, rtol=1e-4, atol=1e-5)


def test_weights_to_an_output_count_by_who_saw_its_class():
    """One unit in two networks: 3 of 4 examples of class 0 and none of class 1 in the first."""
    nets = [
        {"dense1": {"kernel": np.array([[1.0]]), "bias": np.array([0.5])},
         "head": {"kernel": np.array([[2.0, 7.0, 1.0]]), "bias": np.array([0.4, 9.0, 1.0])}},
        {"dense1": {"kernel": np.array([[3.0]]), "bias": np.array([1.5])},
         "head": {"kernel": np.array([[6.0, 5.0, 3.0]]), "bias": np.array([0.8, 0.3, 2.0])}},
    ]  # fmt: skip
    counts = [[3, 0, 0], [1, 2, 0]]
    found = MT.pfnm(nets, class_counts=counts, sigma=10.0)
    np.testing.assert_allclose(found["dense1"]["kernel"], [[2.0]], rtol=1e-6)
    # 3/4 2 + 1/4 6, the second's 5, and of the class that nobody saw the weight of one of them.
    np.testing.assert_allclose(found["head"]["kernel"][0, :2], [3.0, 5.0], rtol=1e-6)
    assert found["head"]["kernel"][0, 2] in (1.0, 3.0)
    np.testing.assert_allclose(found["head"]["bias"][:2], [0.75 * 0.4 + 0.25 * 0.8, 0.3], rtol=1e-6)
    # Sigma 2 and a prior of deviation 1 around biases of 0.1, by hand: s = c/4, q0 = 1.
    shrunk = MT.pfnm(nets, class_counts=counts, sigma=2.0, prior_sigma=1.0, prior_bias=0.1,
                     gamma=1e-9)  # fmt: skip
    np.testing.assert_allclose(shrunk["dense1"]["kernel"], [[(1 + 3) / 4 / 1.5]], rtol=1e-6)
    np.testing.assert_allclose(shrunk["dense1"]["bias"], [(0.1 + 2 / 4) / 1.5], rtol=1e-6)
    head = [3.0 / 4 / 1.25, 5.0 / 4 / 1.25, 0.0]
    np.testing.assert_allclose(shrunk["head"]["kernel"], [head], rtol=1e-6)
    bias = [(0.1 + 0.5 / 4) / 1.25, (0.1 + 0.3 / 4) / 1.25, 0.1]
    np.testing.assert_allclose(shrunk["head"]["bias"], bias, rtol=1e-6)


def test_pfnm_refuses_what_classes_cannot_mean():
    net = fl.models.mlp((3,), num_classes=2, input_shape=(4,)).init(KEY)
    for counts in ([[1, 2]], [[1, -1], [0, 1]], [1, 2], [[np.nan, 1], [1, 1]]):
        with pytest.raises(ValueError, match=r"class_counts must be \[2, K\]"):
            MT.pfnm([net, net], class_counts=counts)
    with pytest.raises(ValueError, match="a column for each of the 2 outputs, got 3"):
        MT.pfnm([net, net], class_counts=np.ones((2, 3)))
    with pytest.raises(ValueError, match="weights must be left out beside class_counts"):
        MT.pfnm([net, net], class_counts=np.ones((2, 2)), weights=[1, 1])
    with pytest.raises(ValueError, match=r"confidence must be \[2, 2\]"):
        MT.pfnm_atoms(np.ones((2, 3, 2)), confidence=np.ones(2))
    with pytest.raises(ValueError, match="confidence must be finite and not negative"):
        MT.pfnm_atoms(np.ones((2, 3, 2)), confidence=-np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"prior_mean must be a number or \[2\]"):
        MT.pfnm_atoms(np.ones((2, 3, 2)), prior_mean=np.ones(3))


def test_networks_of_other_widths_become_one_of_all_their_units():
    """Three subsets of five units, each in an order of its own: their union, each unit once."""
    model = fl.models.mlp((5,), num_classes=3, input_shape=(4,))
    net = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), model.init(KEY))
    layer = MT.hidden_layers(net)[0]

    def part(units):
        kernel, bias = (net["dense1"][name][..., units] for name in ("kernel", "bias"))
        head = {"kernel": net["head"]["kernel"][units], "bias": net["head"]["bias"]}
        return {"dense1": {"kernel": kernel, "bias": bias}, "head": head}

    found = MT.pfnm([part([0, 1, 2]), part([3, 1]), part([4, 2, 3, 0])], sigma=0.05)
    for path, along in (("kernel", -1), ("bias", -1)):
        expected = np.take(net["dense1"][path], range(5), along)  # as they come, 0 to 4
        np.testing.assert_allclose(found["dense1"][path], expected, atol=1e-6)
    np.testing.assert_allclose(found["head"]["kernel"], net["head"]["kernel"], atol=1e-6)
    atoms = MT.pfnm_atoms(np.zeros((2, 1, 1)) + [[[3.0]], [[3.0]]], sigma=1.0, prior_sigma=1.0)
    np.testing.assert_allclose(atoms.values[0], 2 * 3 / (2 + 1), rtol=1e-6)  # shrunk to 0
    assert atoms.counts.tolist() == [2, 0]
    assert layer.width == 5


def test_bad_input():
    with pytest.raises(ValueError, match=r"costs must be \[L, J\] with L <= J"):
        MT.assignment(np.ones((3, 2)))
    with pytest.raises(ValueError, match="does not read the 6 units"):
        MT.hidden_layers({"a": {"kernel": np.ones((2, 6))}, "b": {"kernel": np.ones((4, 3))}})
    with pytest.raises(ValueError, match="must hold a kernel"):
        MT.hidden_layers({"b": np.zeros(3)})
    cnn = jax.eval_shape(fl.models.cnn(2, (8, 8, 1), widths=(8, 8)).init, KEY)
    with pytest.raises(ValueError, match=r"block1/norm/bias.*give the layers by hand"):
        MT.hidden_layers(cnn)
    kernels = {"dense1": {"kernel": np.ones((2, 3))}, "dense2": {"kernel": np.ones((3, 2))}}
    with pytest.raises(ValueError, match=r"kernels and biases only, got \['shift1/b'\]"):
        MT.hidden_layers({**kernels, "shift1": {"b": np.ones(3)}})
    diverged = jax.tree.map(lambda leaf: np.full((2, *leaf.shape), np.nan), kernels)
    with pytest.raises(ValueError, match="models must be finite, but dense1/kernel is not"):
        MT.matched_average(diverged)
    with pytest.raises(ValueError, match="like must be finite"):
        MT.align(kernels, jax.tree.map(lambda leaf: leaf[0], diverged))
    units, absent = np.ones((3, 1, 1)), np.array([[True], [True], [False]])
    units[1:] = np.inf  # the last one is padding
    with pytest.raises(ValueError, match=r"units must be finite, .* networks \[1\] are not"):
        MT.pfnm_atoms(units, present=absent)
    with pytest.raises(ValueError, match="layers must name axes of 3 units"):
        MT.reorder({"w": np.ones((2, 4))}, MT.Layer(3, (("w", -1),), ()), np.arange(3))
