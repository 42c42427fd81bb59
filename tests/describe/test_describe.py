"""describe(): every composition is named with its settings, whoever wrote its parts."""

import inspect
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.describe import describe
from fedjax_lite.describe.models import num_parameters
from fedjax_lite.describe.notes import read
from fedjax_lite.describe.phrases import WORDS, phrase
from fedjax_lite.testing import registered_slots, registry

PLAN = fl.Plan(batch_size=10, epochs=3)
LEAKS = ("<locals>", "<function", "<lambda", "object at 0x", "Traced<", "PjitFunction", "None")


def loss(params, examples, key):
    return params * examples["x"]


def make(**options):
    defaults = {"plan": PLAN, "sampler": fl.uniform(4)}
    if "privacy" in options:
        defaults.pop("sampler")
    return fl.fedavg(loss, optax.sgd(0.25), **{**defaults, **options})


def lines_of(algorithm):
    """The text after every label."""
    text = " ".join(describe(algorithm).split())
    labels = [
        line.strip().split(":")[0] for line in describe(algorithm).splitlines() if ":" in line
    ]
    return text, labels


ATTACKS = {
    "sign flip": fl.attacks.sign_flip(),
    "alie": fl.attacks.alie(z=1.25),
    "ipm": fl.attacks.ipm(0.125),
    "gaussian": fl.attacks.gaussian(1.5),
    "min max": fl.attacks.min_max(),
    "min sum": fl.attacks.min_sum(),
    "mimic": fl.attacks.mimic(2),
    "replacement": fl.attacks.model_replacement(boost=10.0),
}
ALGORITHMS = {
    **registry.ALGORITHMS,
    "centralised": lambda rate, sampler, strategy: fl.centralised(
        loss, optax.sgd(rate), plan=PLAN, strategy=strategy
    ),
    "local only": lambda rate, sampler, strategy: fl.local_only(
        loss, optax.sgd(rate), plan=PLAN, sampler=sampler, strategy=strategy
    ),
    "fedbn": lambda rate, sampler, strategy: fl.fedbn(
        loss, optax.sgd(rate), plan=PLAN, sampler=sampler, strategy=strategy
    ),
}
TITLES = {
    "fedsgd": "FedSGD (McMahan et al., 2017)",
    "fedavg": "FedAvg (McMahan et al., 2017)",
    "fedavg optax yogi server": "FedOpt (Reddi et al., 2021)",
    "fedavgm": "FedAvgM (Hsu et al., 2019)",
    "fedadagrad": "FedAdagrad (Reddi et al., 2021)",
    "fedadam": "FedAdam (Reddi et al., 2021)",
    "fedyogi": "FedYogi (Reddi et al., 2021)",
    "fedprox": "FedProx (Li et al., 2020)",
    "fedprox adaptive": "FedProx with an adaptive mu (Li et al., 2020)",
    "fednova": "FedNova (Wang et al., 2020)",
    "scaffold": "SCAFFOLD (Karimireddy et al., 2020)",
    "feddyn": "FedDyn (Acar et al., 2021)",
    "mime": "Mime (Karimireddy et al., 2020)",
    "mimelite": "MimeLite (Karimireddy et al., 2020)",
    "per-fedavg": "Per-FedAvg (Fallah et al., 2020)",
    "fomaml": "First-order MAML (Finn et al., 2017)",
    "reptile": "Reptile (Nichol et al., 2018)",
    "frozen leaves": "FedAvg with frozen leaves (Houlsby et al., 2019)",
    "fedlora": "Federated LoRA (Hu et al., 2022)",
    "local leaves": "FedAvg with local leaves (Arivazhagan et al., 2019)",
    "centralised": "Centralised training",
    "local only": "Local training only",
    "fedbn": "FedBN (Li et al., 2021)",
    "hierfavg": "HierFAVG (Liu et al., 2020)",
    "apfl": "APFL (Deng et al., 2020)",
    "pfedme": "pFedMe (Dinh et al., 2020)",
    "fedper": "FedPer (Arivazhagan et al., 2019)",
    "lg fedavg": "LG-FedAvg (Liang et al., 2020)",
    "fedrep": "FedRep (Collins et al., 2021)",
    "fedbabu": "FedBABU (Oh et al., 2022)",
    "ditto": "Ditto (Li et al., 2021)",
    "precision weighted": "FedAvg with inverse-variance weights (Cochran, 1954)",
    "fedgan": "FedGAN (Rasouli et al., 2020)",
    "fedma": "FedMA (Wang et al., 2020)",
    "splitfed": "SplitFed 1 (Thapa et al., 2020)",
    "ifca": "IFCA (Ghosh et al., 2020)",
    "debiasing": "Adversarial debiasing (Zhang et al., 2018)",
    "fedem": "FedEM (Marfoq et al., 2021)",
    "mixture of experts": "Federated mixture of experts (Reisser et al., 2021)",
    "ca2fl": "CA2FL (Wang et al., 2024)",
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_told(name):
    text, labels = lines_of(ALGORITHMS[name](0.0625, fl.uniform(5), fl.chunked(2)))
    assert not [leak for leak in LEAKS if leak in text]
    told = {"Local work", "Local steps", "Server", "Execution"}
    if name.startswith("splitfed"):  # both sides do the steps
        told = {"Local work", "Steps", "Cut", "Execution"}
    assert told <= set(labels) or name == "local only"
    assert "Execution: chunked(2)." in text
    assert "your own" not in text.replace(f"your own `loss` ({__name__})", "")
    if "0.0625" not in text:  # a rate inside the user's own function of the round
        assert "your own" in text
        assert name == "fedavg schedule"
    if name in (
        "fedbuff",
        "fedasync",
        "ca2fl",
        "scaffold asynchronous",
    ):  # arrivals, not a sampler's
        assert "Cohort: each round the next" in text
    elif name != "centralised":
        assert "Cohort: each round 5 clients, uniformly without replacement." in text
    for known in (n for n in TITLES if n == name or (n + " " in name and n != "fedavg")):
        if name in TITLES:
            assert text.startswith(TITLES[name] + " ")
        else:
            assert text.startswith(TITLES[known].split(" (")[0])


@pytest.mark.parametrize(
    "part",
    [
        *registry.SAMPLERS.values(),
        *registry.AGGREGATORS.values(),
        *registry.TRANSFORMS.values(),
        *ATTACKS.values(),
    ],
    ids=[*registry.SAMPLERS, *registry.AGGREGATORS, *registry.TRANSFORMS, *ATTACKS],
)
def test_every_part_is_named(part):
    words = describe(part)
    assert not [leak for leak in LEAKS if leak in words]
    assert "your own" not in words
    piece = read(part)
    assert piece.module.startswith("fedjax_lite.")
    assert piece.name == piece.note.name
    shown = ("cohort_size", "rate", "clip", "max_norm", "num_byzantine", "fraction", "levels")
    for setting, value in piece.settings.items():
        if setting in (*shown, "stddev") and value is not None:
            assert f"{value:.5g}" in words, (setting, value)


def test_no_public_factory_is_told_by_plumbing():
    """A part is named after the function that the user called, as its registry key is spelled."""
    renamed = {"poisson cohorts": "poisson", "clip wide": "clip"}
    for table in (registry.SAMPLERS, registry.AGGREGATORS, registry.TRANSFORMS):
        for key, part in table.items():
            wanted = renamed.get(key, key).replace(" ", "_").replace("-", "_")
            assert wanted.startswith(read(part).name), key


def test_the_tables_name_factories_that_exist():
    names = {n for g in (registry.SAMPLERS, registry.AGGREGATORS, registry.TRANSFORMS, ATTACKS)
             for n in (read(part).name for part in g.values())}  # fmt: skip
    # Without these nothing of the kind is in the registries.
    rest = {"modular_mean", "noisy_codes", "of_direction", "inverse_variance", "once_an_epoch"}
    rest |= {"edge_averages", "in_clusters", "mean_of_products", *fl.arrivals.__all__}
    rest |= {"encrypted_mean", "silent", "norm_shares"}
    assert set(WORDS) <= names | rest


def test_settings_are_those_of_the_call():
    inner = fl.bucketing(2, inner=fl.krum(1))
    algorithm = make(
        plan=fl.Plan(batch_size=32, steps=7),
        sampler=fl.dropout(fl.poisson(0.125), 0.375),
        uplink=fl.chain(fl.clip(1.5), fl.error_feedback(fl.top_k(0.02))),
        downlink=fl.Downlink(fl.qsgd(5), of="model"),
        aggregator=fl.byzantine(fl.ipm(0.75), clients=[3, 7], inner=inner),
        server_optimizer=optax.sgd(0.5, momentum=0.8),
    )
    text, _ = lines_of(algorithm)
    assert text.startswith("FedAvgM (Hsu et al., 2019) ")
    order = [
        "with probability 0.125 (Poisson",
        "drops out with probability 0.375",
        "7 steps in batches of 32",
        "SGD with learning rate 0.25",
        "clipped to L2 norm 1.5, then with error feedback reduced to the 2% largest coordinates",
        "ids [3, 7]",
        "times 0.75 (inner product manipulation)",
        "means of 2 random clients each",
        "Krum",
        "(num_byzantine 1)",
        "SGD with momentum 0.8 and learning rate 0.5",
        "the model is quantised by QSGD to 5 levels",
        "Clients keep: what compression left out.",
    ]
    places = [text.find(words) for words in order]
    assert min(places) >= 0, order[int(np.argmin(places))]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("weighting", "words"),
    [("examples", "its number of examples"), ("uniform", "a message weighs 1.")],
)
def test_weights(weighting, words):
    assert words in lines_of(make(weighting=weighting))[0]


def test_weights_are_not_told_where_they_do_not_count():
    slots = {"plan": PLAN, "sampler": fl.uniform(4), "aggregator": fl.median()}
    assert " mean " not in describe(fl.feddyn(loss, optax.sgd(0.25), alpha=0.5, **slots))
    assert "weighs" not in describe(make(aggregator=fl.median()))
    assert "weighs" not in describe(make(aggregator=fl.geometric_median()))
    assert "weighs" not in describe(make(aggregator=fl.norm_bound(1.0, inner=fl.krum(1))))
    assert "weighs its number" in lines_of(make(aggregator=fl.norm_bound(1.0)))[0]
    private = fl.privacy.central_gaussian(
        clip=0.5, num_clients=100, expected_cohort_size=20, noise_multiplier=1.25, delta=1e-4
    )
    text, labels = lines_of(make(privacy=private))
    assert "weighs" not in text
    assert "Privacy" in labels
    assert " ".join(private.accountant.description.split()) in text
    assert "clipped to L2 norm 0.5" in text
    assert "deviation 1.25 times the clip" in text
    assert "divided by 20." in text


def test_noise_is_told_by_what_is_added():
    common = {"clip": 0.5, "num_clients": 20, "cohort_size": 2, "num_rounds": 20, "delta": 1e-4}
    matrix = fl.privacy.matrix_noise(noise_multiplier=2.0, per_layer=True, **common)
    assert "clipped to L2 norm 0.5 (layer by layer), summed" in describe(matrix)
    assert "deviation 2.82843 times" in describe(matrix)  # two turns: the root of 2 times 2


@pytest.mark.parametrize("name", registered_slots.mechanisms())
def test_no_part_of_a_mechanism_is_called_the_users(name):
    mechanism = registered_slots.mechanisms()[name]
    for words in (describe(mechanism), describe(make(privacy=mechanism))):
        assert "your own" not in words.replace(f"your own `loss` ({__name__})", "")
        assert not [leak for leak in LEAKS if leak in words]


def test_plans():
    assert describe(fl.Plan(batch_size=None)) == "1 epoch in one batch of all its data"
    uneven = fl.Plan(batch_size=4, epochs=np.array([2, 5, 3]))
    assert describe(uneven) == "2 to 5 epochs a client, in batches of 4"


def test_numbers_are_told_to_the_precision_of_float32():
    words = [
        describe(fl.clip(value)).split()[-1] for value in (jnp.float32(0.3), 1.50445, 1e-5, 10)
    ]
    assert words == ["0.3", "1.50445", "1e-05", "10"]
    assert describe(fl.clip(123456.0)).endswith(" 123456")


def loss_line(model):
    algorithm = fl.fedavg(model.loss, optax.sgd(0.1), plan=PLAN, sampler=fl.uniform(4))
    text = lines_of(algorithm)[0]
    return text[text.index("Loss: ") : text.index(" Uplink:")]


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_loss_is_told_by_its_model():
    cnn = fl.models.cnn(num_classes=3, input_shape=(8, 8, 1))
    model = fl.models.with_precision(cnn, "bfloat16")
    words = f"cnn ({size(cnn.init(jax.random.key(0))):,} parameters), with_precision."
    assert loss_line(model) == f"Loss: cross_entropy of {words}"
    own = fl.fedavg(jax.jit(loss), optax.sgd(0.1), plan=PLAN, sampler=fl.uniform(4))
    assert f"Loss: your own `loss` ({__name__})." in describe(own)


def test_linear_and_flax_models_are_called_what_they_are():
    from flax import linen, nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    for model, words in (
        (fl.models.linear(3, (4,)), "linear"),
        (fl.models.linear(3, (4,), sigmoid_outputs=True), "linear"),
        (fl.models.mlp((), num_classes=3, input_shape=(4,)), "mlp"),
        (fl.models.from_nnx(lambda rngs: Net(rngs)), "Net (from_nnx)"),
        (fl.models.from_linen(linen.Dense(3), jnp.zeros((1, 4))), "Dense (from_linen)"),
    ):
        assert loss_line(model) == f"Loss: cross_entropy of {words} (15 parameters)."


def test_a_model_is_named_after_the_factory_that_was_called():
    # The published numbers of parameters; they are asserted on the parameters elsewhere.
    for name, num in (("mcmahan_cnn", "1,663,370"), ("lenet", "62,006"), ("pfl_cnn", "1,626,442")):
        made = getattr(fl.models, name)()
        assert loss_line(made) == f"Loss: cross_entropy of {name} ({num} parameters)."
    cropped = fl.models.augmented(fl.models.cifar_cnn24(), size=24, crop=0)
    assert "cifar_cnn24 (1,068,298 parameters), augmented." in loss_line(cropped)
    assert loss_line(fl.models.conv_net()).startswith("Loss: cross_entropy of conv_net (")


def test_running_statistics_are_no_parameters_and_a_failing_init_has_no_size():
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            x = linen.Dense(3, use_bias=False)(x)
            return linen.BatchNorm(use_running_average=not train)(x)

    model = fl.models.from_linen(Net(), jnp.zeros((1, 4)), statistics="averaged")
    assert "(18 parameters)" in loss_line(model)  # 4 * 3 weights, scale and bias
    broken = fl.models.from_functions(lambda key: 1 / 0, lambda params, x, key: x)
    assert num_parameters(broken.made) is None
    assert loss_line(broken) == "Loss: cross_entropy of from_functions."


def test_what_is_refused_is_told_by_its_type():
    class Big(dict):
        pass

    with pytest.raises(TypeError) as caught:
        describe(Big(x=np.zeros(99)))
    assert "got Big; " in str(caught.value)
    assert "0." not in str(caught.value)


def test_a_strategy_set_later_is_the_one_told():
    with_strategy = make().with_strategy
    assert with_strategy is not None
    algorithm = with_strategy(fl.sequential())
    assert "Execution: sequential()." in describe(algorithm)


def test_it_reads_well_without_print():
    text = describe(make())
    assert repr(text) == str(text)
    assert isinstance(text, str)
    assert max(len(line) for line in text.splitlines()) <= 92


@pytest.mark.parametrize("wrong", [3, None, "fedavg", fl.fedavg, {"a": 1}, (1, 2)])
def test_wrong_input(wrong):
    with pytest.raises(TypeError, match=rf"describe takes an algorithm.*{type(wrong).__name__}"):
        describe(wrong)
    if wrong is fl.fedavg:
        with pytest.raises(TypeError, match="was a factory not called"):
            describe(wrong)


def test_it_runs_nothing_and_is_fast():
    def never(params, examples, key):
        raise AssertionError("the loss was run")

    algorithm = fl.scaffold(never, 0.1, plan=PLAN, sampler=fl.uniform(3))
    describe(algorithm)
    with jax.check_tracer_leaks(), jax.transfer_guard("disallow"):
        took = []
        for _ in range(5):  # of which a busy machine may spoil some
            start = time.process_time()
            describe(algorithm)
            took.append(time.process_time() - start)
        assert min(took) < 0.1


def test_phrases_of_nested_parts():
    nested = fl.transforms.rotated(fl.transforms.stochastic_levels(6))
    assert "6 levels" in phrase(nested)
    assert read(nested).note.factory is inspect.unwrap(fl.transforms.rotated)
