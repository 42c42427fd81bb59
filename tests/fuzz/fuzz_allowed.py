"""Replaced values that can be meant, and so are accepted."""


def is_allowed(full: str, argument: str, kind: str, annotation: str) -> bool:
    """Whether a callable may take this value.

    Args:
      full: the callable's name.
      argument: the argument's.
      kind: of the value, a key of `fuzz_values.VALUES`.
      annotation: the argument's, as it is written; "slot" for those behind ``**slots``.
    """
    return False
