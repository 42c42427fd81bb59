"""The Byzantine grid: its files, its refusals, and how often a rule is compiled."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "byzantine.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    flags = script.Flags(
        preset="smoke",
        rules=("mean", "median"),
        attacks=("none", "sign flip", "label flip"),
        bucket_sizes=(1, 2),
        num_rounds=5,
        output_dir=tmp_path_factory.mktemp("out"),
    )
    programs = []
    with pytest.MonkeyPatch.context() as patch:
        make = script.make_program
        patch.setattr(script, "make_program", lambda *a: programs.append(make(*a)) or programs[-1])
        rows = script.main(flags)
    return flags, rows, programs


@pytest.mark.slow
def test_every_cell_and_both_files(finished):
    flags, rows, _ = finished
    places = [(row["rule"], row["bucket_size"], row["attack"]) for row in rows]
    wanted = [("mean", 1), ("median", 1), ("median", 2)]
    assert places == [(*line, attack) for line in wanted for attack in flags.attacks]
    assert all(0 <= row["accuracy"] <= 100 for row in rows)
    assert len({row["accuracy"] for row in rows}) > 3, "attacks and rules make a difference"
    written = json.loads((flags.output_dir / "results.json").read_text())
    assert written["rows"] == rows
    assert (written["settings"]["num_rounds"], written["settings"]["model"]) == (5, "mlp")
    assert (flags.output_dir / "heat_map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(flags.output_dir.glob("*.tmp*"))


@pytest.mark.slow
def test_one_program_a_rule(finished):
    _, _, programs = finished
    assert [program.go_on._cache_size() for program in programs] == [1, 1, 1]


def test_each_attack_is_the_library_s(script):
    """What the switch sends is what the attack alone sends."""
    from fedjax_lite import attacks
    from fedjax_lite.aggregation import aggregate_stack

    u = np.random.default_rng(0).normal(size=(6, 3)).astype("f4")

    @jax.jit
    def by_number(index):
        return aggregate_stack(
            attacks.byzantine(script.any_attack(script.ATTACKS, index), clients=[1, 4]), u
        )

    alone = {
        "sign flip": attacks.sign_flip(),
        "ipm": attacks.ipm(0.1),
        "alie": attacks.alie(),
        "min-max": attacks.min_max(),
    }
    for name, attack in alone.items():
        got = by_number(jnp.int32(script.ATTACKS.index(name)))
        expected = aggregate_stack(attacks.byzantine(attack, clients=[1, 4]), u)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for name in ("none", "label flip"):
        np.testing.assert_allclose(
            by_number(jnp.int32(script.ATTACKS.index(name))), u.mean(0), rtol=1e-5, atol=1e-6
        )


def test_hostile_clients_who_need_not_compute_send_the_same(script):
    """The same aggregate, whether hostile clients' own messages are there or not."""
    from fedjax_lite import attacks
    from fedjax_lite.aggregation import aggregate_stack, median

    rules = importlib.import_module("byzantine_rules")
    u = np.random.default_rng(1).normal(size=(7, 3)).astype("f4")

    @jax.jit
    def both(index):
        attack = script.any_attack(rules.KNOWING, index, 1)
        hostile = attacks.byzantine(attack, clients=[5, 6], inner=median())
        joined = rules.joined_by(2, 5, hostile)
        return aggregate_stack(joined, u[:5]), aggregate_stack(hostile, u)

    for index, name in enumerate(rules.KNOWING):
        got, expected = both(np.int32(index))
        np.testing.assert_allclose(got, expected, rtol=1e-6, err_msg=name)


def test_the_authors_rfa_starts_at_zero(script):
    """By numpy: eight steps of inverse distances, none below the smoothing."""
    from fedjax_lite.aggregation import aggregate_stack

    rules = importlib.import_module("byzantine_rules")
    u = np.random.default_rng(2).normal(size=(6, 4)) + 1
    center = np.zeros(4)
    for _ in range(8):
        weights = 1 / np.maximum(np.linalg.norm(u - center, axis=1), 0.5)
        center = (weights[:, None] * u).sum(0) / weights.sum()
    got = aggregate_stack(rules.rfa_from_zero(iterations=8, smoothing=0.5), u.astype("f4"))
    np.testing.assert_allclose(got, center, rtol=1e-5)


def test_the_authors_krum_sums_fourth_powers(script):
    """Six clients, f = 2: two neighbours count.

    Those of 0 are 0.1 and 3 away, those of 10 are 2.2 and 2.3: by squares 9.01 against 10.13, so
    0 would win; by fourth powers 81.0 against 51.4, so 10 does.
    """
    from fedjax_lite.aggregation import aggregate_stack

    rules = importlib.import_module("byzantine_rules")
    u = np.array([[0.0], [0.1], [-3.0], [10.0], [12.2], [7.7]], "f4")

    def best(power):
        far = np.abs(u - u.T) ** power + np.diag([np.inf] * 6)
        return np.sort(far, axis=1)[:, :2].sum(1).argmin()

    assert (best(2), best(4)) == (0, 3)
    assert aggregate_stack(rules.krum_of_fourth_powers(2), u).item() == 10.0


def test_the_authors_network_has_one_relu_less(script):
    """What the second convolution makes negative reaches the dense layer: -1 times -1 is 1."""
    model = script.network("cnn", (28, 28, 1), True)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    inputs = params["dense1"]["kernel"].shape[0]
    params["conv2"]["bias"] -= 1
    params["dense1"]["kernel"] -= 1 / inputs
    params["head"]["kernel"][:, 3] = 1 / 128
    logits = jax.jit(model.predict)(params, {"x": np.zeros((2, 28, 28, 1)), "y": np.zeros(2, int)})
    np.testing.assert_allclose(logits, np.tile(np.eye(10)[3], (2, 1)), rtol=1e-5, atol=1e-6)


def test_dropout_masks_are_the_same_whatever_the_key(script):
    model = script.network("cnn", (28, 28, 1), True)
    params = jax.jit(model.init)(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_199_882
    examples = {"x": np.random.default_rng(0).integers(0, 255, (4, 28, 28, 1), "u1"),
                "y": np.arange(4)}  # fmt: skip
    loss = jax.jit(model.loss)
    one, two = (loss(params, examples, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, loss(params, examples, None)), "there is dropout"


def test_data_are_dealt_by_label_to_the_honest(script):
    flags = script.Flags()
    train = {"x": np.zeros((200, 2), np.uint8), "y": np.arange(200) % 10}
    data = script.deal(train, flags, 0)
    assert data.sizes.tolist() == [10] * 25
    held = [set(np.asarray(data.client(i)["y"]).tolist()) for i in range(25)]
    assert held[:20] == [{i // 2} for i in range(20)]
    assert all(len(labels) > 2 for labels in held[20:])


def test_the_paper_s_network(script):
    params = jax.eval_shape(script.network("cnn", (28, 28, 1)).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_199_882


def test_an_earlier_run_of_the_setting_is_kept(script, finished):
    flags, rows, _ = finished
    path = flags.output_dir / "results.json"
    settings = json.loads(path.read_text())["settings"]
    assert script.kept_rows(path, settings | {"rules": ["krum"]}, False) == rows
    assert script.kept_rows(path, settings, True) == []
    with pytest.raises(FileExistsError, match="another setting"):
        script.kept_rows(path, settings | {"momentum": 0.5}, False)


def test_published_numbers_are_where_they_belong(script):
    pictures = importlib.import_module("byzantine_pictures")
    assert pictures.published("rfa", 2, "alie") == 68.8
    assert pictures.published("krum", 1, "mimic") == 37.0
    assert pictures.published("cclip", 1, "sign flip") == 97.77
    assert pictures.published("median", 2, "label flip") == 71.5
    for place in (("mean", 1, "ipm"), ("median", 1, "none"), ("median", 3, "ipm")):
        assert pictures.published(*place) is None


def test_refusals(script, tmp_path):
    earlier = tmp_path / "results.json"
    earlier.write_text("{}")
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(script.Flags(output_dir=tmp_path))
    assert earlier.read_text() == "{}"
    earlier.unlink()
    for options, name in (
        ({"rules": ("best",)}, "--rules"),
        ({"attacks": ("x",)}, "--attacks"),
        ({"num_byzantine": 25}, "--num-byzantine"),
        ({"momentum": 1.0}, "--momentum"),
        ({"bucket_sizes": (0,)}, "buckets"),
    ):
        with pytest.raises(ValueError, match=name):
            script.main(script.Flags(output_dir=tmp_path, **options))
    too_many = script.Flags(preset="smoke", rules=("krum",), num_byzantine=12, output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"krum needs n >= 2 f \+ 3"):
        script.main(too_many)
    assert not list(tmp_path.iterdir())
