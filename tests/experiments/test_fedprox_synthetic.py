"""The stragglers script: its table, its files, its cohorts; and (slow) the pinned reference."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "fedprox_synthetic.py"
SHARES = (0.0, 0.5)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """Three rounds of four clients, two epochs."""
    flags = script.Flags(
        stragglers=SHARES,
        num_rounds=3,
        cohort_size=4,
        epochs=2,
        last=2,
        num_seeds=2,
        output_dir=tmp_path_factory.mktemp("out"),
    )
    return flags, script.main(flags)


def test_every_row_and_both_files(script, finished):
    flags, rows = finished
    assert [(row["stragglers"], row["method"]) for row in rows] == [
        (share, name) for share in SHARES for name in ("fedavg", "fedprox 0", "fedprox mu")
    ]
    for row in rows:
        assert len(row["train_loss_curve"]) == 3
        assert row["train_loss"] == pytest.approx(np.mean(row["train_loss_curve"][1:]), abs=1e-4)
        assert len(row["train_loss_by_seed"]) == len(row["test_accuracy_by_seed"]) == 2
        assert row["train_loss_by_seed"][0] == pytest.approx(row["train_loss"], abs=1e-4)
        assert row["train_loss_by_seed"][0] != row["train_loss_by_seed"][1]
        assert 0 < row["test_accuracy"] < 1
        assert row["reference"] is None, "there is none for these settings"
    written = json.loads((flags.output_dir / "results.json").read_text())
    assert written["rows"] == rows
    assert written["bars"] == []
    assert written["settings"]["epochs"] == 2
    assert (flags.output_dir / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(flags.output_dir.glob("*.tmp*"))


def test_methods_differ_only_where_they_should(finished):
    """Without stragglers FedProx with mu = 0 is FedAvg; with them, and with mu, it is not."""
    curves = {(r["stragglers"], r["method"]): np.array(r["train_loss_curve"]) for r in finished[1]}
    np.testing.assert_allclose(curves[0.0, "fedprox 0"], curves[0.0, "fedavg"], atol=2e-5)
    for share, name in ((0.0, "fedprox mu"), (0.5, "fedavg"), (0.5, "fedprox mu")):
        assert abs(curves[share, "fedprox 0"] - curves[share, name]).max() > 1e-3


def test_fedavg_drops_exactly_the_stragglers(script, finished):
    """Its first round is that of a cohort of the others."""
    flags, rows = finished
    problem = script.load()
    rounds = script.draw(0, 0.5, 30, flags)
    algo = fl.fedavg(
        problem.model.loss,
        optax.sgd(0.01),
        plan=fl.Plan(batch_size=10, epochs=2),
        sampler=fl.uniform(2),
    )
    rest = jnp.asarray(rounds.ids[0][~rounds.slow[0]], jnp.int32)
    assert len(rest) == 2
    key = jax.random.key(0)
    state = algo.init(key, problem.model.init(key), problem.data)
    state, _ = algo.round(key, state, problem.data, fl.Cohort(rest, jnp.ones(2, bool)))
    loss = problem.model.loss(state.server.params, problem.data.examples, key).mean()
    assert float(loss) == pytest.approx(rows[3]["train_loss_curve"][0], abs=1e-4)


def test_cohorts_and_stragglers(script):
    flags = script.Flags(num_rounds=50)
    for share, number in ((0.0, 0), (0.5, 5), (0.9, 9)):
        drawn = script.draw(0, share, 30, flags)
        assert drawn.ids.shape == (50, 10)
        assert (drawn.slow.sum(axis=1) == number).all()
        assert (drawn.epochs[~drawn.slow] == 20).all()
        assert all(len(set(ids)) == 10 for ids in drawn.ids.tolist())
        if number:
            assert set(drawn.epochs[drawn.slow]) == set(range(1, 20))
        # The authors' cohorts: numpy seeded with the round.
        for r in (0, 7):
            expected = np.random.RandomState(r).choice(30, 10, replace=False)
            np.testing.assert_array_equal(drawn.ids[r], expected)
            fast = np.random.RandomState(r).choice(expected, 10 - number, replace=False)
            assert set(expected[~drawn.slow[r]]) == set(fast)
    again, other = script.draw(1, 0.9, 30, flags), script.draw(2, 0.9, 30, flags)
    np.testing.assert_array_equal(again.ids, script.draw(1, 0.5, 30, flags).ids)
    assert (again.ids != other.ids).any()
    assert script.kept(1.0, 10) == 1


def made_up(script, prox, average):
    flags = script.Flags()
    losses = {"fedprox mu": prox, "fedavg": average}
    return [
        script.summary(name, 0.9, np.full((2, 200), loss), np.full((2, 200), 0.5), flags)
        for name, loss in losses.items()
    ]


def test_bars_can_fail(script):
    words = lambda *losses: [t.split()[0] for t in script.verdicts(made_up(script, *losses))]  # noqa: E731
    assert words(0.23, 0.45) == ["PASS", "PASS"]
    assert words(0.24, 0.45) == ["FAIL", "PASS"]
    assert words(0.22, 0.30) == ["PASS", "FAIL"]
    assert words(np.nan, np.nan) == ["FAIL", "FAIL"]
    assert "0.2215 +-0.0016" in script.line(made_up(script, 0.23, 0.45)[0])


def test_nothing_is_overwritten_unasked(script, finished):
    flags, _ = finished
    before = {path: path.read_bytes() for path in flags.output_dir.iterdir()}
    with pytest.raises(FileExistsError, match="--overwrite") as refused:
        script.main(script.Flags(output_dir=flags.output_dir))
    assert str(flags.output_dir) in str(refused.value)
    assert {path: path.read_bytes() for path in flags.output_dir.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "name"),
    [({"stragglers": (1.5,)}, "--stragglers"), ({"num_seeds": 0}, "--num-seeds")],
)
def test_bad_flags_are_named(script, tmp_path, options, name):
    with pytest.raises(ValueError, match=name):
        script.main(script.Flags(output_dir=tmp_path, **options))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.sample(2, of="accuracy of an independent run")
def test_pinned_reference_with_many_stragglers(script, tmp_path, optimised):
    """200 rounds on the authors' cohorts; half a minute."""
    flags = script.Flags(stragglers=(0.9,), num_seeds=1, output_dir=tmp_path)
    rows = {row["method"]: row for row in script.main(flags)}
    written = json.loads((tmp_path / "results.json").read_text())
    assert [text.split()[0] for text in written["bars"]] == ["PASS", "PASS"]
    for row in rows.values():
        assert row["test_accuracy"] == pytest.approx(row["reference"]["test_accuracy"], abs=0.02)
