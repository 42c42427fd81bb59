"""Every example in every docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import fedjax_lite

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(fedjax_lite.__path__, "fedjax_lite.")
)


@pytest.mark.parametrize("name", ["fedjax_lite", *MODULES])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
