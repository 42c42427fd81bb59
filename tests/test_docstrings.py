"""Examples of docstrings run and print what they say; the names in all of them are there."""

import doctest
import functools
import importlib
import pkgutil

import pytest
from examples_names import missing_names

import fedjax_lite

MODULES = sorted(
    ["fedjax_lite", *(m.name for m in pkgutil.walk_packages(fedjax_lite.__path__, "fedjax_lite."))]
)


@functools.cache
def examples_of(name):
    """The docstrings of a module that have examples."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    return [test for test in found if test.examples]


WITH_EXAMPLES = [name for name in MODULES if examples_of(name)]
"""All of them run with `FEDJAX_LITE_TESTS=all`. Each compiles its programs for itself alone."""


@pytest.mark.sample(32)
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_names_in_examples_are_there(name):
    for test in examples_of(name):
        source = "".join(example.source for example in test.examples)
        assert not missing_names(source, test.globs), test.name


def test_a_name_that_is_gone_is_found():
    """An import that the module has no more, and what a package does not export."""
    example = "import fedjax_lite as fl\nx = jnp.zeros(3)\n[fl.Plan, fl.nothing.at_all, y.a, z.a]\n"
    assert {*missing_names(example, {"y": 1})} == {"jnp", "fedjax_lite.nothing", "z"}
    assert missing_names("import math\nf = lambda a: math.pi * a\nf(2)\n", {}) == []
