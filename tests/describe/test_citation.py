"""citation(): BibTeX that parses, papers that the docstrings name, and no others."""

import ast
import re
import tomllib
import unicodedata
from pathlib import Path

import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.sources.load import SOURCES
from fedjax_lite.describe import citation
from fedjax_lite.describe.citation import (
    ACCOUNTANTS,
    DATASETS,
    MECHANISMS,
    OPTAX,
    URL,
    YEAR,
    keys_of,
    own_entry,
)
from fedjax_lite.describe.references import entries, named_in

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fedjax_lite"
BIB = PACKAGE / "describe" / "references.bib"
NUMBER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
REQUIRED = {
    "inproceedings": {"author", "title", "booktitle", "year"},
    "article": {"author", "title", "journal", "year"},
    "techreport": {"author", "title", "institution", "year"},
    "misc": {"author", "title", "year"},
    "software": {"author", "title", "year", "version", "url"},
}
PLAN = fl.Plan(batch_size=10)


def parse(text):
    """A strict reader of BibTeX: ``[(type, key, fields)]``; raises where the text is not valid."""
    found, place = [], 0

    def expect(pattern):
        nonlocal place
        match = re.compile(pattern).match(text, place)
        assert match, f"{pattern!r} expected at {text[place : place + 60]!r}"
        place = match.end()
        return match

    def braced():
        nonlocal place
        start, depth = place, 0
        while place < len(text):
            depth += (text[place] == "{") - (text[place] == "}")
            place += 1
            if depth == 0:
                return text[start + 1 : place - 1]
        raise AssertionError(f"no closing brace after {text[start : start + 60]!r}")

    while True:
        expect(r"(?:\s|%[^\n]*\n)*")
        if place == len(text):
            return found
        kind = expect(r"@([a-z]+)\{")[1]
        key = expect(r"([a-z][a-z0-9_]*),\s*")[1]
        fields = {}
        while text[place] != "}":
            name = expect(r"([a-z]+) = (?=\{)")[1]
            assert name not in fields, f"{name} twice in {key}"
            fields[name] = braced()
            expect(r",\s*")
        expect(r"\}")
        found.append((kind, key, fields))


def plain(text):
    """Lower-case letters without LaTeX and accents."""
    text = re.sub(r"\{\\[^a-zA-Z](\w)\}|\{\\[a-z]\{(\w)\}\}", lambda m: m[1] or m[2], text)
    text = unicodedata.normalize("NFKD", text.replace("{", "").replace("}", ""))
    return re.sub(r"\s+", " ", "".join(c for c in text if not unicodedata.combining(c))).lower()


def docstrings():
    """``(where, text in one line)`` of everything in the package that has a docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            documented = isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            if documented and (text := ast.get_docstring(node)):
                yield (
                    f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}",
                    " ".join(text.split()),
                )


DOCS = list(docstrings())
PARSED = parse(BIB.read_text(encoding="utf-8"))
BY_NUMBER = {f["eprint"]: (k, f) for _, k, f in PARSED if "eprint" in f}


def test_every_entry_is_valid():
    keys = [key for _, key, _ in PARSED]
    assert len(keys) == len(set(keys))
    numbers = [f["eprint"] for _, _, f in PARSED if "eprint" in f]
    assert len(numbers) == len(set(numbers))
    titles = [plain(f["title"]) for _, _, f in PARSED]
    assert len(titles) == len(set(titles))
    for kind, key, fields in PARSED:
        assert REQUIRED[kind] <= set(fields), key
        assert fields["year"] in key
        assert re.fullmatch(r"(19|20)\d\d", fields["year"]), key
        assert fields["title"].startswith("{"), key  # BibTeX styles keep its capitals
        people = fields["author"].split(" and ")
        assert all("," in person or person == "others" for person in people), key
        family = plain(people[0].split(",")[0]).replace("-", "").replace("'", "")
        assert key.startswith(family.replace(" ", "").removeprefix("ogierdu")), key
        if "eprint" in fields:
            assert fields["archiveprefix"] == "arXiv", key
            assert int(fields["year"]) >= 2000 + int(fields["eprint"][:2]), key


def test_the_package_reads_the_same_entries():
    assert {key: fields for _, key, fields in PARSED} == {
        key: entry.fields for key, entry in entries().items()
    }


def test_every_paper_of_a_docstring_has_an_entry():
    lacking = {(n, where) for where, text in DOCS for n in NUMBER.findall(text)
               if n not in BY_NUMBER}  # fmt: skip
    assert not lacking, "add them to fedjax_lite/describe/references.bib"


def test_no_entry_is_unused():
    numbers = {number for _, text in DOCS for number in NUMBER.findall(text)}
    sections = [text.partition("Reference")[2] for _, text in DOCS]
    quoted = {plain(title) for text in sections for title in re.findall(r'"([^"]{12,})"', text)}
    tables = {*OPTAX.values(), *(key for keys in DATASETS.values() for key in keys)}
    for _, key, fields in PARSED:
        title = plain(fields["title"])
        named = any(title.startswith(words) for words in quoted)
        assert fields.get("eprint") in numbers or named or key in tables, key


def test_authors_titles_and_years_agree_with_the_docstrings():
    """Both were written by hand: a wrong number would show a paper of somebody else."""
    checked = 0
    for where, text in DOCS:
        for match in NUMBER.finditer(text):
            before = re.split(
                r";|References?:|\((?=[A-Z]\w+ et al)|(?<=\d{4})\. ", text[: match.start()]
            )[-1]
            before = re.split(r"arXiv:\S+", before)[-1]
            year = re.search(r"\b((?:19|20)\d\d)[a-z]?, $", before)
            if year is None:
                continue
            key, fields = BY_NUMBER[match[1]]
            first, last = sorted((2000 + int(match[1][:2]), int(fields["year"])))
            assert first <= int(year[1]) <= last, (where, key, year[1])
            families = [plain(p.split(",")[0]) for p in fields["author"].split(" and ")]
            words = plain(before)
            title = re.search(r'"([^"]+)"', words)
            if title:
                assert plain(fields["title"]).startswith(title[1]), (where, key)
                words = words[: title.start()]
            places = [words.find(family) for family in families if family in words]
            assert families[0] in words, (where, key, before)
            assert places[0] == min(places), (where, key, before)
            checked += 1
    assert checked > 100


def keys(text):
    """Keys of what citation returned, after that of the software; the whole text must parse."""
    parsed = parse(str(text))
    for kind, _, fields in parsed:
        assert REQUIRED[kind] <= set(fields)
    found = [key for _, key, _ in parsed]
    assert found[0] == "fedjax_lite"
    assert len(found) == len(set(found))
    return found[1:]


def fedavg(**options):
    defaults = {"plan": PLAN, "sampler": fl.uniform(3)}
    if "privacy" in options:
        defaults.pop("sampler")
    return fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1), **{**defaults, **options})


FEDAVG = "mcmahan2017communication"


def test_what_was_composed_is_cited_in_order():
    algorithm = fedavg(
        uplink=fl.chain(fl.clip(1.0), fl.error_feedback(fl.transforms.sparse_ternary(0.1))),
        aggregator=fl.byzantine(fl.alie(), fraction=0.2, inner=fl.bucketing(2, inner=fl.krum(1))),
    )
    assert keys(citation(algorithm)) == [
        FEDAVG,
        "mcmahan2018learning",
        "stich2018sparsified",
        "karimireddy2019error",
        "sattler2019robust",
        "baruch2019little",
        "karimireddy2022byzantine",
        "blanchard2017machine",
    ]


@pytest.mark.parametrize(
    ("options", "cited"),
    [
        ({}, [FEDAVG]),
        ({"server_optimizer": optax.sgd(1.0, momentum=0.9)}, ["hsu2019measuring"]),
        ({"server_optimizer": fl.server.yogi(0.1)}, ["reddi2021adaptive"]),
        ({"server_optimizer": optax.adam(0.1)}, ["reddi2021adaptive", "kingma2015adam"]),
        ({"aggregator": fl.secure_mean(max_abs=1.0)}, [FEDAVG, "bonawitz2017practical"]),
        ({"uplink": fl.gaussian_noise(1.0)}, [FEDAVG, "dwork2014algorithmic"]),
        (
            {"downlink": fl.drive()},
            [FEDAVG, "tang2019doublesqueeze", "caldas2018expanding", "vargaftik2021drive"],
        ),
        (
            {"weighting": fl.aggregation.inverse_variance([1.0, 2.0], floor=0.1)},
            [FEDAVG, "cochran1954combination"],
        ),
        ({"sampler": fl.weighted(3)}, [FEDAVG, "kool2019stochastic"]),
    ],
)
def test_each_slot_is_cited(options, cited):
    assert keys(citation(fedavg(**options))) == cited


def test_methods_are_cited():
    def loss(w, e, key):
        return w * e["x"]

    slots = {"plan": PLAN, "sampler": fl.uniform(3)}
    assert keys(citation(fl.scaffold(loss, 0.1, **slots))) == ["karimireddy2020scaffold"]
    assert keys(citation(fl.feddyn(loss, optax.sgd(0.1), alpha=0.1, **slots))) == [
        "acar2021federated"
    ]
    assert keys(citation(fl.fedprox(loss, optax.adam(0.1), mu=0.1, **slots))) == [
        "li2020federated",
        "kingma2015adam",
    ]
    assert keys(citation(fl.fedbn(loss, optax.sgd(0.1), **slots)))[0] == "li2021fedbn"
    assert keys(citation(fl.apfl(loss, optax.sgd(0.1), **slots))) == ["deng2020adaptive"]
    algo = fl.pfedme(loss, optax.sgd(0.1), learning_rate=0.1, **slots)
    assert keys(citation(algo)) == ["dinh2020personalized"]
    for factory, paper in {
        fl.fedper: "arivazhagan2019federated",
        fl.lg_fedavg: "liang2020think",
        fl.fedrep: "collins2021exploiting",
        fl.fedbabu: "oh2022fedbabu",
    }.items():
        assert keys(citation(factory(loss, optax.sgd(0.1), **slots))) == [paper]
    assert keys(citation(fl.ditto(loss, optax.sgd(0.1), pull=1.0, **slots))) == ["li2021ditto"]
    assert keys(citation(fl.centralised(loss, optax.sgd(0.1), plan=PLAN))) == []


def test_a_private_run_cites_mechanism_and_accounting():
    common = {"num_clients": 100, "noise_multiplier": 1.0, "delta": 1e-4}
    central = fl.privacy.adaptive_clipping(expected_cohort_size=20, **common)
    assert keys(citation(fedavg(privacy=central))) == [
        FEDAVG,
        "mcmahan2018learning",  # Poisson cohorts
        "andrew2021differentially",
        "koskela2020computing",
        "doroshenko2022connect",
        "mironov2019renyi",
    ]
    tree = fl.privacy.tree_noise(clip=1.0, cohort_size=10, num_rounds=10, **common)
    assert keys(citation(tree))[:2] == ["kairouz2021practical", "choquettechoo2022multi"]


def test_the_accounting_that_was_used_is_cited():
    common = {"clip": 1.0, "num_clients": 100, "delta": 1e-4, "expected_cohort_size": 20}
    by_rdp = fl.privacy.central_gaussian(noise_multiplier=1.0, method="rdp", **common)
    assert keys(citation(by_rdp)) == ["mcmahan2018learning", "mironov2019renyi"]
    alone = fl.privacy.gaussian_sum(clip=1.0, noise_multiplier=1.0, denominator=20.0)
    assert keys(citation(fedavg(aggregator=alone))) == [FEDAVG, "mcmahan2018learning"]


@pytest.mark.parametrize(
    ("optimizer", "cited"),
    [
        (optax.adamw(0.1), ["kingma2015adam", "loshchilov2019decoupled"]),
        (optax.adamw(0.1, mask=True), ["kingma2015adam", "loshchilov2019decoupled"]),
        (optax.lamb(0.1), ["kingma2015adam"]),  # its decay is 0
        (optax.inject_hyperparams(optax.adam)(0.1), ["kingma2015adam"]),
        (optax.partition({"a": optax.adam(0.1)}, "a"), ["kingma2015adam"]),
        (fl.server.adam(lambda round: 0.1), ["reddi2021adaptive"]),
    ],
)
def test_optimizers_are_cited_by_what_they_do(optimizer, cited):
    assert keys(citation(optimizer)) == cited


def test_the_tables_name_functions_that_exist():
    import importlib

    for module, name in (*MECHANISMS.values(), *ACCOUNTANTS.values()):
        function = getattr(importlib.import_module(f"fedjax_lite.privacy.{module}"), name)
        assert named_in(function.__doc__), name
    assert set(DATASETS) == set(SOURCES)
    assert {key for keys in DATASETS.values() for key in keys} <= set(entries())
    assert set(OPTAX.values()) <= set(entries())


def test_several_things_at_once():
    model = fl.models.mlp((4,), num_classes=3, input_shape=(2,))
    split = fl.data.dirichlet(alpha=0.5, num_clients=3, seed=0)
    found = keys(citation(fedavg(), model, split, "fashion_mnist", fl.krum, fedavg(), "cifar10"))
    assert found == [
        FEDAVG,
        "li2022federated",
        "yurochkin2019bayesian",
        "xiao2017fashion",
        "blanchard2017machine",
        "krizhevsky2009learning",
    ]
    assert keys(citation()) == []


def test_a_paper_without_number_is_found_by_its_title():
    from fedjax_lite.crypto import shamir

    assert named_in(shamir.split.__doc__) == ["shamir1979share"]
    assert list(keys_of(fl.attacks.min_max())) == ["shejwalkar2021manipulating"]


@pytest.mark.parametrize("wrong", [3, None, {"a": 1}, 0.5])
def test_wrong_types(wrong):
    with pytest.raises(TypeError, match=f"citation takes .*{type(wrong).__name__}"):
        citation(wrong)


def test_factories_that_were_not_called_are_cited_or_refused():
    assert list(keys_of(fl.krum)) == ["blanchard2017machine"]
    assert "kingma2015adam" in keys_of(optax.adam)
    for factory, called in ((optax.sgd, r"optax\.sgd"), (fl.uniform, "uniform")):
        with pytest.raises(
            TypeError, match=rf"^{called} is .*not called.*give .*{called}\(\.\.\.\)"
        ):
            citation(factory)
    # What they make has no paper, which is no mistake.
    assert list(keys_of(optax.sgd(0.1))) == list(keys_of(fl.uniform(3))) == []


def test_unknown_data_set():
    with pytest.raises(ValueError, match=r"'cifar11' is not known.*cifar10"):
        citation("cifar11")


def test_the_citation_file_says_the_same():
    """CITATION.cff, read line by line: it is flat YAML but for the authors."""
    text = (ROOT / "CITATION.cff").read_text()
    fields = dict(re.findall(r"^([a-z-]+): (.+)$", text, re.MULTILINE))
    assert fields["cff-version"] == "1.2.0"
    assert {"message", "title"} <= set(fields)  # what the format requires, with authors
    assert re.search(r"^authors:\n  - name: The fedjax_lite authors$", text, re.MULTILINE)
    assert fields["version"] == fl.__version__
    assert fields["repository-code"] == URL
    assert fields["date-released"].startswith(f"{YEAR}-")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fields["license"] == project["license"]
    assert project["urls"]["Source"] == URL
    ((_, _, own),) = parse(own_entry())
    assert own["title"].strip("{}") == fields["title"].strip('"')
    assert own["version"] == fl.__version__


def test_it_reads_well_without_print():
    text = citation(fedavg())
    assert repr(text) == str(text)
    assert text.startswith("@software{fedjax_lite,\n")
