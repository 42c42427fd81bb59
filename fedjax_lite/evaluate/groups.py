"""Groups of clients or of examples that an evaluation reports apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import shown


class Groups(NamedTuple):
    """Who belongs to which group: told by unit, or by a key of the examples."""

    numbers: np.ndarray | None
    """int64 `[n]`, the group of each client (of each example, for `evaluator`)."""
    key: str | None

    def of_rows(self, examples: Mapping[str, Any], rows: Any = None) -> np.ndarray:
        """int64: the groups of some rows of the examples, by the key; negative: of none.

        Args:
          examples: leaves `[E, ...]`.
          rows: integers; None: all.
        """
        assert self.key is not None
        values = np.asarray(examples[self.key])
        return (values if rows is None else values[np.asarray(rows)]).astype(np.int64)


def groups_of(groups: Any, leaves: Mapping[str, Any], num_units: int, whom: str) -> Groups | None:
    """What was given as ``groups=``, checked.

    Args:
      groups: integers `[n]`, the key of an array of the examples, or None.
      leaves: the examples, or what is known of them: values with dtype and shape.
      num_units: `n`, how many numbers there must be.
      whom: what a number belongs to, "client" or "example".

    Raises:
      TypeError: if groups are no integers.
      ValueError: if there is not one number a unit, or no such key.

    Example:
      >>> groups_of([0, 1, -1], {}, 3, "client").numbers.tolist()
      [0, 1, -1]
      >>> groups_of("site", {"y": np.zeros(3, int)}, 3, "client")
      Traceback (most recent call last):
      ...
      ValueError: groups must be a key of the examples, one of ['y'], or one integer a client, \
got 'site'
    """
    if groups is None:
        return None
    if isinstance(groups, str):
        if groups not in leaves:
            raise ValueError(
                f"groups must be a key of the examples, one of {sorted(leaves)}, or one integer a "
                f"{whom}, got {groups!r}"
            )
        leaf = leaves[groups]
        # What a store says of its leaves leaves the axis of examples out.
        axes = len(leaf.shape) - (1 if hasattr(leaf, "ndim") else 0)
        if axes or np.dtype(leaf.dtype).kind not in "iub":
            raise ValueError(
                f"examples[{groups!r}] must be one integer an example to tell groups, got "
                f"{leaf.dtype}{list(leaf.shape)}; number the groups 0, 1, ..."
            )
        return Groups(None, groups)
    numbers = np.asarray(groups)
    if numbers.dtype.kind not in "iub" or numbers.ndim != 1:
        found = f"{numbers.dtype}{list(numbers.shape)}" if numbers.ndim else shown(groups)
        raise TypeError(
            f"groups must be integers [{num_units}], one a {whom}, got {found}; number the groups "
            "0, 1, ..., -1 for none: np.unique(names, return_inverse=True)[1]"
        )
    if len(numbers) != num_units:
        raise ValueError(
            f"groups must be one integer a {whom}, {num_units} of them, got {len(numbers)}"
        )
    if not len(numbers) or numbers.max() < 0:
        raise ValueError(f"groups must hold a group, got {shown(groups)}; number them 0, 1, ...")
    return Groups(numbers.astype(np.int64), None)
