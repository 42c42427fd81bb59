"""The settings of a run in config.json, and whether those of a resumed run are the same."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from fedjax_lite.checks.arguments import shown
from fedjax_lite.run.files import finite
from fedjax_lite.types import Key
from fedjax_lite.version import __version__

MAY_CHANGE = (
    *("num_rounds", "progress", "resume", "overwrite", "output_dir", "tensorboard"),
    "devices",  # to rounding
)
"""Keys of a config that a resumed run may change without changing any result."""


def versions() -> dict[str, str]:
    """Versions of all that decides a run's numbers, and the device that it runs on.

    Returns:
      ``python, jax, jaxlib, optax, flax, numpy, fedjax_lite, platform, device, num_devices``;
      a package that is not installed is "not installed".

    Example:
      >>> versions()["jax"] == jax.__version__
      True
    """
    found = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "optax", "flax", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    devices = jax.devices()
    return found | {
        "fedjax_lite": __version__,
        "platform": f"{platform.system()} {platform.machine()}, {devices[0].platform}",
        "device": devices[0].device_kind,
        "num_devices": str(len(devices)),
    }


def make_settings(config: Mapping[str, Any] | None, key: Key) -> dict[str, Any]:
    """What ``config.json`` holds: the caller's config, the run's key, and `versions`.

    Args:
      config: anything with a JSON form; None where there is none.
      key: the typed key of the run.

    Returns:
      ``{"config": ..., "key": words of the key, "versions": ...}``.

    Raises:
      TypeError: if `config` is no mapping, or has no JSON form.

    Example:
      >>> make_settings({"num_clients": 5}, jax.random.key(7))["key"]
      [0, 7]
    """
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config must be a dict of settings by name, got {shown(config)}")
    try:
        plain = json.loads(json.dumps(finite(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"config must have a JSON form (numbers, strings, lists, dicts): {error}"
        ) from error
    return {"config": plain, "key": jax.random.key_data(key).tolist(), "versions": versions()}


def read_settings(path: Path) -> dict[str, Any]:
    """Reads ``config.json`` back.

    Raises:
      ValueError: if it is not what `make_settings` makes; the message says what to do.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "config.json")
      ...     _ = path.write_text('{"config": {"alpha": 0.1}, "key": [0, 1], "versions": {}}')
      ...     read_settings(path)["config"]
      {'alpha': 0.1}
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        for name, kinds in (("config", dict), ("key", list), ("versions", dict)):
            if not isinstance(settings, dict) or not isinstance(settings.get(name), kinds):
                raise ValueError(f"{name!r} is missing in it, or is no {kinds.__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): put it back from a copy, or delete it, and settings are "
            "compared with those that the checkpoint kept"
        ) from error
    return settings


def check_settings(
    saved: Mapping[str, Any], new: Mapping[str, Any], *, may_change: Sequence[str] = ()
) -> list[str]:
    """Checks that a resumed run has the key and the settings of the run that it resumes.

    Args:
      saved: `make_settings` of the earlier run, as read back from its file. Where one of both
        has no config, only the keys are compared.
      new: `make_settings` of this run.
      may_change: top-level keys of the config that may differ.

    Returns:
      Notices: versions that changed in between, which may change last bits.

    Raises:
      ValueError: if config or key differ; the message lists what was and what is.

    Example:
      >>> old, new = ({"config": {"alpha": a}, "key": [0, 1]} for a in (0.1, 0.3))
      >>> check_settings(old, new, may_change=["alpha"])
      []
    """
    differs = []
    if None not in (saved.get("config"), new.get("config")):
        was, now, missing = saved["config"], new["config"], object()
        differs = [
            f"  {name}: was {was.get(name, 'absent')!r}, is {now.get(name, 'absent')!r}"
            for name in {**was, **now}
            if name not in may_change and was.get(name, missing) != now.get(name, missing)
        ]
    if saved.get("key") != new.get("key"):
        differs.append(f"  key: was {saved.get('key')}, is {new.get('key')} (the run's own key)")
    if differs:
        raise ValueError(
            "the run to resume had another config or key; give the same, or another output_dir "
            "(what may differ goes into config_may_change):\n" + "\n".join(differs)
        )
    before, after = saved.get("versions") or {}, new.get("versions") or {}
    changed = [
        f"{n} {before[n]} -> {after[n]}" for n in after if before.get(n, after[n]) != after[n]
    ]
    return [f"versions changed, last bits may differ: {', '.join(changed)}"] if changed else []
