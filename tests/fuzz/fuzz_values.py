"""What an argument is replaced with, by kind."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Traced:
    """Stands for a value that is known only when a program runs."""


VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "string": "no",
    "empty string": "",
    "zero": 0,
    "minus one": -1,
    "negative": -0.5,
    "fraction": 1.5,
    "nan": math.nan,
    "infinity": math.inf,
    "huge int": 2**40,
    "huge float": 1e300,
    "numpy int": np.int64(-3),
    "numpy float": np.float32(np.nan),
    "complex": 1j,
    "empty list": [],
    "list of strings": ["a", "b"],
    "list of nan": [math.nan, 1.0],
    "dict": {"a": 1},
    "object": object(),
    "function": lambda *args, **kwargs: None,
    "class": int,
    "bytes": b"no",
    "matrix": np.full((2, 5), 7.0, np.float32),
    "array of strings": np.array(["a", "b"]),
    "array of nan": jnp.array([jnp.nan, 1.0]),
    "empty array": np.zeros((0, 3), np.float32),
    "key": jax.random.key(3),
    "traced": Traced,
}
