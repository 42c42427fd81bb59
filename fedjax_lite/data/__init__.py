"""Federated data: who owns which examples, and where examples come from."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.data.formats.errors import DatasetFormatError, DatasetNotFoundError
    from fedjax_lite.data.partition.concept_shift import (
        dealt_groups,
        label_permutation,
        label_sign,
    )
    from fedjax_lite.data.partition.deal_like import deal_like
    from fedjax_lite.data.partition.feature_skew import brightness, contrast, noise, rotation
    from fedjax_lite.data.partition.label_skew import (
        dirichlet,
        dirichlet_mixture,
        dirichlet_quantity,
    )
    from fedjax_lite.data.partition.pachinko import pachinko
    from fedjax_lite.data.partition.partition import (
        FeatureSkew,
        Partitioner,
        by_key,
        iid,
        label_counts,
        owners,
        partition,
    )
    from fedjax_lite.data.partition.quantity_skew import (
        lognormal,
        power_law,
        quantity_dirichlet,
        zipf,
    )
    from fedjax_lite.data.partition.shards import classes_per_client, shards
    from fedjax_lite.data.partition.split import split_clients
    from fedjax_lite.data.population.dataset import FederatedDataset, from_arrays
    from fedjax_lite.data.population.splits import with_splits
    from fedjax_lite.data.population.task_stream import (
        TaskStream,
        split_tasks,
        task_stream,
    )
    from fedjax_lite.data.sources.load import load, source_of
    from fedjax_lite.data.sources.quadratics import (
        quadratic_form_loss,
        quadratic_forms,
        quadratic_loss,
        quadratics,
    )
    from fedjax_lite.data.sources.synthetic import synthetic
    from fedjax_lite.data.stores.npy_store import write_streamed
    from fedjax_lite.data.stores.parquet_store import ParquetStore, write_parquet
    from fedjax_lite.data.stores.record_store import RecordStore, write_records
    from fedjax_lite.data.stores.store import ArrayStore, chunks

__all__ = [
    "ArrayStore",
    "DatasetFormatError",
    "DatasetNotFoundError",
    "FeatureSkew",
    "FederatedDataset",
    "ParquetStore",
    "Partitioner",
    "RecordStore",
    "TaskStream",
    "brightness",
    "by_key",
    "chunks",
    "classes_per_client",
    "deal_like",
    "dealt_groups",
    "contrast",
    "dirichlet",
    "dirichlet_mixture",
    "dirichlet_quantity",
    "from_arrays",
    "iid",
    "label_counts",
    "label_permutation",
    "label_sign",
    "load",
    "lognormal",
    "noise",
    "owners",
    "pachinko",
    "partition",
    "power_law",
    "quadratic_form_loss",
    "quadratic_forms",
    "quadratic_loss",
    "quadratics",
    "quantity_dirichlet",
    "rotation",
    "shards",
    "source_of",
    "split_clients",
    "split_tasks",
    "synthetic",
    "task_stream",
    "with_splits",
    "write_parquet",
    "write_records",
    "write_streamed",
    "zipf",
]

load_when_asked(__name__)
