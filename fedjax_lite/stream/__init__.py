"""Populations larger than memory: examples and client rows are fetched cohort by cohort."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.stream.dataset import StreamedDataset, open_streamed
    from fedjax_lite.stream.host_table import HostTable
    from fedjax_lite.stream.memory import StreamedBytes, streamed_bytes

__all__ = ["HostTable", "StreamedBytes", "StreamedDataset", "open_streamed", "streamed_bytes"]

load_when_asked(__name__)
