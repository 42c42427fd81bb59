"""For every public callable one valid call; `fuzz_values` then replaces its arguments one by one.

`BY_NAME` gives a valid value for every argument that a signature requires, by its name; `OWN` says
what a callable needs otherwise, `MORE` what its ``**slots`` take. `LEFT_OUT` says why a callable is
not called. A new public function that fits none of these fails a test.
"""

import inspect
from collections.abc import Callable
from typing import Any

from fuzz_arguments import BY_NAME, MADE, OWN
from fuzz_arrivals import TRACE
from fuzz_world import PLAN

import fedjax_lite as fl

PACKAGES = (
    "",
    "aggregation",
    "algorithms",
    "arrivals",
    "attacks",
    "attacks.leakage",
    "attacks.membership",
    "crypto",
    "data",
    "deploy",
    "distributed",
    "drift",
    "generation",
    "lifelong",
    "engine",
    "matching",
    "metrics",
    "models",
    "parties",
    "privacy",
    "privacy.audit",
    "report",
    "selection",
    "server",
    "stream",
    "testing",
    "transforms",
    "uncertainty",
    "verify",
)

RECORDS = "a record: it is looked at where it is used"
LEFT_OUT = {
    "distributed": "asks the other processes of a run; tests/hosts/test_distributed.py starts some",
    "verify": "runs the whole verification; tests/verify/test_verify.py",
    "testing": "for tests themselves; tests/laws/test_laws.py",
    "forecast": "takes a compiled program",
    "data.ParquetStore": "tests/data/stores/test_streamed_stores.py",
    "data.RecordStore": "tests/data/stores/test_streamed_stores.py",
    "privacy.audit.plant": "plants what `audit` counts",
    "describe": "takes anything",
    "citation": "takes anything",
    "crypto.num_bytes": "takes anything",
    "use_cores": "changes the whole process; tests/hosts/test_cores.py",
    "keep_compiled_programs": "changes the whole process; tests/run/test_compilation.py",
    "report.baselines": "trains three models; tests/report/test_report_baselines.py",
    "fastest": "times programs; tests/run/test_fastest.py",
    "models.conv_general_dilated": "JAX's own function, of JAX's signature",
    "models.check_per_example": "is itself a check",
    "report.Comparison": "made by `compare`",
    "privacy.audit.audit": "trains for seconds",
    "attacks.leakage.observe": "compiles a round; tests/attacks/test_leakage_inversion.py",
    "attacks.leakage.invert": "trains for seconds",
    "attacks.leakage.invert_smashed": "trains for seconds",
    "crypto.CkksServer": "takes a public context",
    "drift.with_client_losses": "wraps: its client is asked when a round is built",
    "crypto.CkksSecret": "makes keys for a second; tests/crypto/test_crypto_ckks.py",
    "crypto.ckks_mean": "needs such keys",
    "deploy.Answer": "a type",
    "deploy.Exchange": "a type",
    **dict.fromkeys(
        ("deploy.flower_answers", "deploy.flower_client", "deploy.flower_server"),
        "needs Flower; tests/deploy/test_app_arguments.py",
    ),
    **dict.fromkeys(
        ("deploy.flare_client", "deploy.flare_server"),
        "needs NVFlare; tests/deploy/test_app_arguments.py",
    ),
    "deploy.listen": "opens sockets; tests/deploy/test_sockets.py",
    "deploy.Listener": "made by `listen`",
    "deploy.answer_forever": "connects until it is stopped; tests/deploy/test_sockets.py",
    "deploy.make_certificates": "overwrites nothing, so that it is called once a folder",
    "parties.protected_gradients": "makes such keys; tests/parties/test_protected.py",
}
"""By full name, or by package."""

STARRED: dict[str, tuple[Any, ...]] = {
    "factors": (fl.arrivals.constant(1.0),),
    "kinds": (),
    "names": ("kernel",),
    "paths": (str(TRACE),),
    "skews": (),
    "transforms": (fl.identity(),),
}
"""What ``*arguments`` take, by name; one of them is replaced."""
SLOTS = ("sampler", "aggregator", "uplink", "downlink", "privacy", "strategy")
"""What ``**slots`` of an algorithm take."""


def public() -> dict[str, Callable[..., Any]]:
    """Every public callable that is to be called, by its shortest name below ``fl``."""
    found: dict[str, Callable[..., Any]] = {}
    seen: set[int] = set()
    for package in PACKAGES:
        module = module_of(package)
        names = getattr(module, "__all__", None) or [
            n
            for n, v in vars(module).items()
            if n[0] != "_" and getattr(v, "__module__", "") == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            if inspect.ismodule(value) or not callable(value) or id(value) in seen:
                continue
            seen.add(id(value))
            full = f"{package}.{name}".lstrip(".")
            if not left_out(full, value):
                found[full] = value
    return found


def left_out(full: str, value: Any) -> str:
    """Why a callable is not called; "" where it is."""
    is_record = hasattr(value, "_fields") or (
        inspect.isclass(value) and "__dataclass_fields__" in vars(value) and value is not fl.Plan
    )
    if is_record or (inspect.isclass(value) and issubclass(value, BaseException)):
        return RECORDS
    if inspect.isclass(value) and full.startswith("crypto."):
        return "a party of a protocol; tests/crypto/secagg/test_crypto_secagg.py"
    if not inspect.isfunction(value) and not inspect.isclass(value):
        return "a type for annotations"
    return LEFT_OUT.get(full) or LEFT_OUT.get(full.split(".")[0], "")


def valid_arguments(full: str, value: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of one valid call, by name.

    Raises:
      KeyError: for a required argument that no table knows.
    """
    own = OWN.get(full, {})
    given = {}
    for name, parameter in inspect.signature(value).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            given[name] = STARRED[name]
        elif name in own or parameter.default is parameter.empty or name == "sampler":
            argument = own[name] if name in own else BY_NAME[name]
            is_made = any(argument is maker for maker in MADE)
            given[name] = argument() if is_made else argument
    kinds = {p.name: p.kind for p in inspect.signature(value).parameters.values()}
    if kinds.get("slots") is inspect.Parameter.VAR_KEYWORD:
        given = {"plan": PLAN, "sampler": BY_NAME["sampler"], **given}
        if full in ("fedsgd", "q_fedsgd"):
            del given["plan"]
    return given


def called(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What a function makes of arguments by name; ``*rest`` are a tuple, or one of them."""
    parameters = inspect.signature(function).parameters.values()
    starred = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if starred is None:
        return function(**given)
    before = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    rest = given[starred] if isinstance(given[starred], tuple) else (given[starred],)
    named = {n: v for n, v in given.items() if n not in (*before, starred)}
    return function(*(given[n] for n in before), *rest, **named)


def argument_names(value: Callable[..., Any]) -> list[str]:
    """The arguments that can be replaced."""
    parameters = inspect.signature(value).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    takes_slots = any(p.kind is p.VAR_KEYWORD and p.name == "slots" for p in parameters)
    return names + [s for s in SLOTS if takes_slots and s not in names]


def module_of(package: str) -> Any:
    module: Any = fl
    for part in filter(None, package.split(".")):
        module = getattr(module, part)
    return module
