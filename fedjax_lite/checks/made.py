"""made: factories sign what they make, so that nobody has to look into its closures."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import FederatedAlgorithm


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Made:
    """Which factory made a part, and with what; the last field of every part, as ``made``.

    Descriptions read this, never a closure. It is compared by identity, for arguments may be
    arrays. The decorator `fedjax_lite.checks.made` writes it.
    """

    factory: Callable[..., Any]
    """The public function that was called."""
    arguments: dict[str, Any]
    """By name, as bound, with defaults; inner parts are among them, so that nesting is data."""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the factory put into the part."""
    before: Made | None = None
    """What the part said when the factory got it: of another factory, inside this one."""

    @property
    def name(self) -> str:
        """The factory's."""
        return self.factory.__name__

    @property
    def module(self) -> str:
        """Where the factory is defined."""
        return self.factory.__module__

    def replaced(self, part: Any) -> list[str]:
        """Fields of a part in which there is now something else than the factory put there."""
        return [name for name, value in self.fields.items() if getattr(part, name) is not value]

    def __repr__(self) -> str:
        """The call, with those of its arguments that are plain."""
        plain = {k: v for k, v in self.arguments.items() if isinstance(v, bool | int | float | str)}
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in plain.items())})"


Factory = TypeVar("Factory", bound=Callable[..., Any])


def made(factory: Factory) -> Factory:
    """The same factory, whose products know that it made them, and with which arguments.

    Put it above a factory of your own, and `describe` and `citation` tell its parts by their name,
    settings and inner parts. A factory that calls another one has the last word.

    Args:
      factory: returns a part with a field ``made`` (an aggregator, an algorithm ...), an optax
        optimizer, or a new function. The latter two carry `made` as an attribute, an optimizer at
        its ``update``, and so does the ``loss`` of a model. Anything else is returned as it is.

    Returns:
      A function of the same signature.

    Raises:
      TypeError: if it is no function.

    Example:
      >>> from fedjax_lite.types import Transform
      >>> @made
      ... def scaled(factor: float = 2.0) -> Transform:
      ...     return Transform(lambda value: (), lambda key, state, value: (state, factor * value))
      >>> scaled().made
      scaled(factor=2.0)
      >>> scaled().made.replaced(scaled())
      ['init', 'update']
    """
    if not inspect.isfunction(factory):
        raise TypeError(
            f"factory must be a function that returns a part, got {shown(factory)}; put @fl.made "
            "above its def"
        )

    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        product = factory(*args, **kwargs)
        return signed(product, Made(factory, bound(factory, args, kwargs)))

    return call  # type: ignore[return-value]


def signed(product: Any, note: Made | None) -> Any:
    """What a factory made, with the note of it.

    For factories that put another function into the product of an inner one, and want it to go by
    the inner one's name; None leaves it as it is.

    Example:
      >>> from fedjax_lite.types import Sampler
      >>> sampler = signed(Sampler(len, len), Made(len, {}))
      >>> sampler.made.name, sampler.made.replaced(sampler._replace(sample=max))
      ('len', ['sample'])
    """
    if note is None:
        return product
    fields = getattr(product, "_fields", ())
    algorithm: Any = product
    if isinstance(algorithm, FederatedAlgorithm) and product.with_strategy:
        product = _with_strategies(algorithm, note)
    if "made" in fields:
        others = {name: getattr(product, name) for name in fields if name != "made"}
        note = Made(note.factory, note.arguments, others, product.made)
        if "loss" in fields:  # of a model: all that the round is given of it
            _mark(product.loss, note)
        return product._replace(made=note)
    if fields[:2] == ("init", "update"):
        _mark(product.update, Made(note.factory, note.arguments, product._asdict()))
    elif inspect.isfunction(product):
        _mark(product, note)
    return product


def maker_of(thing: Any) -> Made | None:
    """The note on who made a part, an optimizer or a function; None where nobody left one.

    Looks through ``functools.partial`` without arguments and wrappers made with `functools.wraps`,
    such as ``jax.jit``.

    Example:
      >>> from fedjax_lite.round.server import yogi
      >>> maker_of(yogi(0.5)).name, maker_of(yogi(0.5)).arguments["learning_rate"]
      ('yogi', 0.5)
      >>> maker_of(len) is None
      True
    """
    if hasattr(thing, "_fields"):
        held = thing.made if "made" in thing._fields else getattr(thing, "update", None)
        thing = getattr(held, "made", held)
        return thing if isinstance(thing, Made) else None
    while thing is not None:
        note = getattr(thing, "made", None)
        if isinstance(note, Made):
            return note
        plain = isinstance(thing, functools.partial) and not (thing.args or thing.keywords)
        thing = thing.func if plain else getattr(thing, "__wrapped__", None)
    return None


def bound(factory: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, with defaults; ``**rest`` by its own names.

    Example:
      >>> bound(lambda a, *b, c=3, **rest: None, (1, 2), {"d": 4})
      {'a': 1, 'b': (2,), 'c': 3, 'd': 4}
    """
    signature = _signature(factory)
    given = signature.bind(*args, **kwargs)
    given.apply_defaults()
    arguments = dict(given.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
    return arguments


@functools.cache
def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(factory)


def _with_strategies(algorithm: FederatedAlgorithm, note: Made) -> FederatedAlgorithm:
    """The algorithm, which is signed by the same factory whatever strategy it is given later."""
    inner: Any = algorithm.with_strategy

    def with_strategy(strategy: Any) -> FederatedAlgorithm:
        arguments = note.arguments
        if "strategy" in arguments:
            arguments = {**arguments, "strategy": strategy}
        return signed(inner(strategy), Made(note.factory, arguments))

    return algorithm._replace(with_strategy=with_strategy)


def _mark(function: Any, note: Made) -> None:
    """Writes a note on a function, if it is not one of the arguments, which others wrote upon."""
    given = (getattr(argument, "loss", argument) for argument in note.arguments.values())
    if callable(function) and all(function is not argument for argument in given):
        try:
            function.made = note
        except AttributeError:  # a builtin, a bound method: it stays as it is
            return
