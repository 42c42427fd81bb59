"""Renaming local variables and private functions, ours or optax's, changes no description."""

import ast
import importlib
import inspect
import types
from pathlib import Path

import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.describe import describe

PLAN = fl.Plan(batch_size=10)


class Renamed(ast.NodeTransformer):
    """Gives names of a module that nobody is meant to know another ending."""

    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):
        if node.id in self.names:
            node.id += "_otherwise"
        return node

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        if node.name in self.names:
            node.name += "_otherwise"
        return node


def private_names(tree):
    """Local variables, inner functions and private functions; neither arguments nor exports."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]
    arguments = {a.arg for f in functions for a in ast.walk(f.args) if isinstance(a, ast.arg)}
    at_top = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    inside = {
        n.id if isinstance(n, ast.Name) else n.name
        for f in functions
        for n in ast.walk(f)
        if (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        or (isinstance(n, ast.FunctionDef) and n is not f)
    }
    hidden = {name for name in at_top if name.startswith("_")}
    outside = {
        n.id
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef)
        for n in ast.walk(statement)
        if isinstance(n, ast.Name)
    }
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for alias in n.names
    }
    public = at_top - hidden
    return (inside | hidden) - arguments - imported - public - (outside - hidden)


def renamed(name, keep=()):
    """A module, executed anew from a source with other names; `keep` are classes it shares."""
    source = inspect.getsource(importlib.import_module(name))
    tree = ast.parse(source)
    names = private_names(tree)
    assert len(names) >= 3
    tree = Renamed(names).visit(tree)
    tree.body = [n for n in tree.body if not (isinstance(n, ast.ClassDef) and n.name in vars(keep))]
    module = types.ModuleType(name)
    vars(module).update({n: v for n, v in vars(keep).items() if inspect.isclass(v)})
    exec(compile(ast.fix_missing_locations(tree), f"<{name}>", "exec"), vars(module))
    return module


def test_what_is_renamed_is_what_closures_held():
    krum = importlib.import_module("fedjax_lite.aggregation.krum")
    again = renamed(krum.__name__, keep=krum)
    held = inspect.unwrap(again.krum).__code__.co_names
    assert "_lowest" in inspect.unwrap(krum.krum).__code__.co_names
    assert "_lowest_otherwise" in held


PARTS = {
    "fedjax_lite.aggregation.krum": lambda m: [m.krum(2), m.multi_krum(1, num_selected=3)],
    "fedjax_lite.aggregation.hierarchical": lambda m: [m.hierarchical([0, 1, 0], inner=fl.krum(1))],
    "fedjax_lite.round.sampling": lambda m: [m.dropout(m.poisson(0.25), 0.5), m.uniform(3)],
    "fedjax_lite.transforms.qsgd": lambda m: [m.qsgd(7), fl.chain(fl.clip(2.0), m.qsgd(3))],
    "fedjax_lite.transforms.top_k": lambda m: [fl.error_feedback(m.top_k(0.1))],
    "fedjax_lite.attacks.updates": lambda m: [m.alie(1.5), m.ipm(0.5), m.gaussian(2.0)],
    "fedjax_lite.round.server": lambda m: [
        m.yogi(0.5), m.optimizer_server(optax.adam(0.5)), optax.chain(m.adam(0.25, b1=0.5)),
    ],
    "fedjax_lite.objectives.proximal": lambda m: [
        m.proximal(0.5), optax.chain(m.proximal(0.5), SGD),
    ],
    "fedjax_lite.round.local": lambda m: [m.local_sgd(loss, optax.sgd(0.5))],
    "fedjax_lite.privacy.gaussian": lambda m: [
        m.gaussian_sum(clip=1.0, noise_multiplier=2.0, denominator=3.0),
        m.central_gaussian(clip=1.0, num_clients=9, noise_multiplier=2.0, sampling_rate=0.5,
                           delta=1e-3, method="rdp", num_rounds=2),
    ],
    "fedjax_lite.algorithms.hierfavg": lambda m: [
        m.hierfavg(MODEL.loss, SGD, edges=[0, 1, 0], edge_rounds=2, **SLOTS)
    ],
    "fedjax_lite.algorithms.fedprox": lambda m: [
        m.fedprox(loss, optax.sgd(0.5), mu=0.25, adaptive=adaptive, **SLOTS)
        for adaptive in (False, True)
    ],
    "fedjax_lite.algorithms.scaffold": lambda m: [m.scaffold(loss, 0.5, **SLOTS)],
    "fedjax_lite.algorithms.fednova": lambda m: [m.fednova(loss, 0.5, mu=0.25, **SLOTS)],
    "fedjax_lite.algorithms.mime": lambda m: [m.mimelite(loss, 0.5, **SLOTS)],
    "fedjax_lite.round.compose": lambda m: [
        m.federated_algorithm(fl.local_sgd(loss, optax.sgd(0.5)), server=SERVER, **SLOTS)
    ],
    "fedjax_lite.models.dense_nets": lambda m: [
        fl.fedavg(m.mlp((5,), input_shape=(3,)).loss, optax.sgd(0.5), **SLOTS)
    ],
    "fedjax_lite.models.functions": lambda m: [
        fl.fedavg(m.from_functions(init, lambda w, x, key: x @ w).loss, optax.sgd(0.5), **SLOTS)
    ],
}  # fmt: skip


def loss(params, examples, key):
    return params * examples["x"]


def init(key):
    return fl.models.linear(2, (3,)).init(key)["head"]


SGD = optax.sgd(1.0)
MODEL = fl.models.mlp((4,), num_classes=3, input_shape=(2,))
SERVER = fl.optimizer_server(optax.sgd(1.0))
SLOTS = {"plan": PLAN, "sampler": fl.uniform(2)}


@pytest.mark.parametrize("name", PARTS)
def test_our_own_names(name):
    module = importlib.import_module(name)
    again = renamed(name, keep=module)
    before = [(describe(part), fl.citation(part)) for part in PARTS[name](module)]
    assert [(describe(part), fl.citation(part)) for part in PARTS[name](again)] == before
    assert not any("your own" in words.replace("your own `loss`", "") for words, _ in before)


FACTORIES = ("chain", "scale", "scale_by_adam", "trace", "add_decayed_weights", "scale_by_lion",
             "scale_by_learning_rate", "cosine_decay_schedule")  # fmt: skip


def chained(of):
    """What optax's aliases are made of."""
    adam = of.scale_by_adam(b1=0.75)
    return {
        "sgd": of.chain(of.scale(-0.5)),
        "momentum": of.chain(of.trace(0.5), of.scale(-0.5)),
        "adam": of.chain(adam, of.scale(-0.5)),
        "adamw": of.chain(adam, of.add_decayed_weights(0.25), of.scale_by_learning_rate(0.5)),
        "schedule": of.chain(of.scale_by_learning_rate(of.cosine_decay_schedule(0.5, 30))),
        "lion": of.chain(of.scale_by_lion(), of.scale(-0.5)),
    }


def test_optax_own_names():
    modules = {getattr(optax, name).__module__ for name in FACTORIES}
    others = {m: renamed(m, keep=importlib.import_module(m)) for m in modules}
    again = types.SimpleNamespace(
        **{name: getattr(others[getattr(optax, name).__module__], name) for name in FACTORIES}
    )
    after = chained(again)
    words = {name: describe(optimizer) for name, optimizer in chained(optax).items()}
    assert {name: describe(optimizer) for name, optimizer in after.items()} == words
    assert words["sgd"] == "SGD with learning rate 0.5"
    assert words["momentum"] == "SGD with momentum 0.5 and learning rate 0.5"
    assert words["adamw"].startswith("AdamW (b1 0.75, b2 0.999, eps 1e-08, weight decay 0.25) with")
    assert words["schedule"].endswith("along a cosine from 0.5 to 0 in 30 steps")
    assert words["lion"] == "an optax chain of 2 transformations with ScaleByLionState"
    assert after["adam"].update.__name__.endswith("_otherwise")  # they were other names indeed


def test_nothing_reads_a_closure():
    words = (
        "__closure__",
        "cell_contents",
        "co_freevars",
        "co_names",
        "co_varnames",
        "closurevars",
    )
    package = Path(fl.__file__).parent
    readers = [p.name for p in package.rglob("*.py") if any(w in p.read_text() for w in words)]
    assert not readers
