"""FederatedDataset: pooled examples and who owns which, in compressed sparse rows (CSR)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.pixels import check_pixels
from fedjax_lite.data.population.not_arrays import check_arrays, check_not_iterator
from fedjax_lite.data.population.one_line import leaf_words, length, length_of_all
from fedjax_lite.data.population.owner_ids import as_ids, check_unmasked, number_ids, row_numbers
from fedjax_lite.data.population.population import Found
from fedjax_lite.data.population.population import SizedPopulation as SizedPopulation
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FederatedDataset:
    """All clients' data, on the device; an argument of a round, never a closure.

    Client `i` owns the examples ``order[offsets[i]:offsets[i+1]]``. There is no padded index
    matrix, so one huge client costs nothing to the others, and a new partition of the same
    examples is only a new `order` and `offsets`.

    Attributes:
      examples: leaves `[E, ...]` in their raw dtype (uint8 images stay uint8).
      offsets: int32 `[N + 1]`.
      order: int32, the rows of `examples` that clients own, client after client; None when all
        examples are stored so. A part of a population (`split_clients`) names some of the rows: the
        others belong to nobody here.
      max_client_size: size of the largest client. Static: it fixes the shape of a whole-data-set
        batch, and with `N` and `E` it tells `auto()` how uneven the sizes are.
      splits: other data of the same clients, by name, for phases of local work that read them; see
        `with_splits`. Each is a `FederatedDataset` of `N` clients.
    """

    examples: PyTree
    offsets: Array
    order: Array | None
    max_client_size: int = dataclasses.field(metadata={"static": True})
    splits: dict[str, FederatedDataset] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Counts, names and types; no values."""
        owned = length_of_all(self.examples if self.order is None else self.order)
        counts = f"{length(self.offsets, -1)} clients, {owned} examples"
        more = "".join(f", {name!r} beside it" for name in self.splits)
        return f"FederatedDataset({counts}{leaf_words(self.examples)}{more})"

    @property
    def num_clients(self) -> int:
        """The size `N` of the population."""
        return self.offsets.shape[0] - 1

    @property
    def num_examples(self) -> int:
        """The number of examples that clients own; `E`, but for a part of a population."""
        rows = jax.tree.leaves(self.examples)[0] if self.order is None else self.order
        return rows.shape[0]

    @property
    def sizes(self) -> Array:
        """int32 `[N]`, examples per client."""
        return jnp.diff(self.offsets)

    @property
    def num_rows(self) -> int:
        """Rows of a table of client state kept beside this data set: `N`."""
        return self.num_clients

    def find(self, ids: Array, slots: Array) -> Found:
        """Where the clients of a cohort are found here; `ids` lie in the population."""
        return Found(ids, ids, self.offsets[ids + 1] - self.offsets[ids])

    @property
    def client_of_example(self) -> Array:
        """int32 `[E]`: the owner of each pooled example; -1 for one that nobody owns here."""
        num_rows = jax.tree.leaves(self.examples)[0].shape[0]
        return _owners(self.offsets, self.order, self.num_examples, num_rows)

    def owned_examples(self) -> PyTree:
        """The examples that clients own, client after client: leaves `[num_examples, ...]`.

        What a function of plain examples is given where this is a part of a population, whose
        `examples` are those of all parts. A copy, unless all examples are stored so already.
        """
        if self.order is None:
            return self.examples
        return jax.tree.map(lambda leaf: leaf[self.order], self.examples)

    def client(self, index: int) -> PyTree:
        """The examples of one client, leaves `[n, ...]`; for looking at, not for training."""
        if not 0 <= index < self.num_clients:
            raise ValueError(f"index must be in [0, {self.num_clients}), got {index}")
        low, high = int(self.offsets[index]), int(self.offsets[index + 1])
        rows = slice(low, high) if self.order is None else self.order[low:high]
        return jax.tree.map(lambda leaf: leaf[rows], self.examples)


@functools.partial(jax.jit, static_argnums=(2, 3))  # op by op it is a dozen programs
def _owners(offsets: Array, order: Array | None, num_examples: int, num_rows: int) -> Array:
    positions = jnp.arange(num_examples, dtype=jnp.int32)
    owners = jnp.searchsorted(offsets, positions, side="right").astype(jnp.int32) - 1
    if order is None:
        return owners
    return jnp.full(num_rows, -1, jnp.int32).at[order].set(owners)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CohortDataset:
    """The data of one cohort only, in the order of its slots; what a stream hands to a round.

    Its client table, too, holds the rows of the cohort only: slot `c` owns the examples
    ``examples[offsets[c]:offsets[c+1]]`` and row `c`. Clients keep their ids in the population, so
    results are those of the whole data set.

    Attributes:
      examples: leaves `[E, ...]`; rows behind the last client's are padding and never read.
      offsets: int32 `[C + 1]`.
      num_clients: size `N` of the population. Static.
      num_examples: examples `E` of the population; tells `auto()` how uneven it is. Static.
      max_client_size: largest client of the population, not only of this cohort. Static: the same
        round of the whole data set has batches of the same shape.
      splits: other data of the same cohort, by name.
    """

    examples: PyTree
    offsets: Array
    num_clients: int = dataclasses.field(metadata={"static": True})
    num_examples: int = dataclasses.field(metadata={"static": True})
    max_client_size: int = dataclasses.field(metadata={"static": True})
    order: None = dataclasses.field(default=None, metadata={"static": True})
    splits: dict[str, CohortDataset] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Counts, names and types; no values."""
        counts = f"{length(self.offsets, -1)} of {self.num_clients} clients"
        return f"CohortDataset({counts}{leaf_words(self.examples)})"

    @property
    def num_padded(self) -> int:
        """Rows of `examples`, padding included."""
        return jax.tree.leaves(self.examples)[0].shape[0]

    @property
    def num_rows(self) -> int:
        """Rows of the table of client state: `C`."""
        return self.offsets.shape[0] - 1

    def find(self, ids: Array, slots: Array) -> Found:
        """A client is found by its slot."""
        return Found(slots, slots, self.offsets[slots + 1] - self.offsets[slots])


ClientData: TypeAlias = FederatedDataset | CohortDataset | ShardedDataset


def check_data(data: Any) -> ClientData:
    """Returns `data` if clients can train on it.

    Raises:
      TypeError: if it is something else; the message knows iterators and plain arrays.
    """
    if isinstance(data, ClientData):
        return data
    check_not_iterator(data, "data")
    raise TypeError(
        f"data must be a FederatedDataset, got {type(data).__name__}; build one with "
        "fedjax_lite.data.from_arrays(examples, client_ids) or "
        "fedjax_lite.data.partition.partition(examples, partitioner)"
    )


def from_arrays(
    examples: Mapping[str, Any] | PyTree,
    client_ids: Any,
    *,
    num_clients: int | None = None,
) -> FederatedDataset:
    """Builds a federated data set from arrays and the owner of each example.

    Args:
      examples: any pytree of arrays, leaves `[E, ...]`, e.g. ``{"x": images, "y": labels}``.
      client_ids: `[E]`. Non-negative integers with `num_clients` given are row numbers of the
        population as they are. Otherwise any sortable keys (writers, roles, hospitals): clients
        are numbered in the sorted order of the distinct keys, as ``np.unique`` gives them. Ids
        are exact: integers of any size, strings, dates; floats below the integers that their type
        can tell apart (``2**53`` for float64).
      num_clients: the population's size, where clients without examples exist.

    Returns:
      A `FederatedDataset` on the default device.

    Raises:
      ValueError: if there are no examples, lengths differ, floats are not finite or values masked,
        an id is missing (NaN, NaT, None, NA, masked, or "nan" and the like among strings), was
        rounded to a float, or lies outside the population; the message names the row.
      TypeError: if ids cannot be sorted, or with `num_clients` are not integers.

    Example:
      >>> import numpy as np
      >>> owners = ["a", "b", "a", "a"]
      >>> data = from_arrays({"x": np.arange(4.0), "y": np.array([0, 1, 0, 1])}, owners)
      >>> data.num_clients, data.sizes.tolist()
      (2, [3, 1])
    """
    num_examples = check_examples(examples)
    shape = as_ids(client_ids, "client_ids").shape
    if shape != (num_examples,):
        raise ValueError(
            f"client_ids must have shape [{num_examples}], one owner for each of the examples, "
            f"got {list(shape)}; np.repeat(names, sizes) names the owners of pooled "
            "clients"
        )
    if num_clients is None:
        owners, num_clients = number_ids(client_ids, "client_ids")
    else:
        check_count(num_clients, "num_clients", minimum=1)
        owners = row_numbers(client_ids, "client_ids", num_clients)
    return from_owners(examples, owners, num_clients)


def from_owners(examples: PyTree, owners: np.ndarray, num_clients: int) -> FederatedDataset:
    """Builds the CSR form from row numbers that are already checked."""
    sizes = np.bincount(owners, minlength=num_clients)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    in_order = bool(np.all(owners[:-1] <= owners[1:]))
    order = None if in_order else jnp.asarray(np.argsort(owners, kind="stable").astype(np.int32))
    return FederatedDataset(
        examples=jax.tree.map(jnp.asarray, examples),
        offsets=jnp.asarray(offsets),
        order=order,
        max_client_size=int(sizes.max()),
    )


def check_examples(examples: PyTree) -> int:
    """Checks a pytree of arrays `[E, ...]` and returns `E`.

    Raises:
      ValueError: if there are no arrays or no examples, leading axes differ, or a float is not
        finite; the message names the leaf.
    """
    check_arrays(examples)
    leaves = jax.tree_util.tree_leaves_with_path(examples)
    if not leaves:
        raise ValueError(
            "examples must hold at least one array, got an empty pytree; give {'x': ..., 'y': ...}"
        )
    lengths = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        check_unmasked(leaf, f"examples{name}")
        leaf = np.asarray(leaf)
        if leaf.dtype == object or leaf.dtype.kind in "US":
            raise TypeError(f"examples{name} must be numeric, got dtype {leaf.dtype}; encode it")
        if leaf.ndim == 0:
            raise ValueError(f"examples{name} must have a leading axis of examples, got a scalar")
        check_values(leaf, name)
        check_pixels(leaf, name)
        lengths[name] = leaf.shape[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"examples must share their leading axis, got lengths {lengths}")
    num_examples = next(iter(lengths.values()))
    if num_examples == 0:
        raise ValueError(
            "examples must not be empty, got arrays of 0 rows: the population has no data; look at "
            "the split or the filter that they come from"
        )
    return num_examples


def check_values(leaf: np.ndarray, name: str) -> None:
    """Raises ValueError for what the device could not store: NaN, infinity, too large integers."""
    stored = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        with np.errstate(over="ignore"):
            finite = np.isfinite(leaf.astype(stored))
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise ValueError(
                f"examples{name} holds NaN or infinity as {stored} (first in row {row}); "
                "drop or impute such rows before building the data set"
            )
    elif leaf.dtype.kind in "iu" and stored != leaf.dtype:
        low, high = np.iinfo(stored).min, np.iinfo(stored).max
        if leaf.min(initial=0) < low or leaf.max(initial=0) > high:
            raise ValueError(
                f"examples{name} holds integers beyond {stored} ({leaf.min()}..{leaf.max()}), "
                "which JAX would wrap; renumber them"
            )
