"""The fuzz suite as a command: ``python -m tests.fuzz --all --report fuzz.txt``."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_flags import flag_cases, judge_flag
from fuzz_run import cases, judge
from fuzz_verdict import AMISS, LEAST, Verdict, share_of_good


def main() -> int:
    """Runs what is asked for, prints and writes what came of it; 1 where something is amiss."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every case; else a tenth of them")
    parser.add_argument("--seed", type=int, default=0, help="which tenth")
    parser.add_argument("--only", default="", help="callables and scripts whose name holds this")
    parser.add_argument("--report", type=Path, help="a file for all that is not good or allowed")
    flags = parser.parse_args()
    share, started = 1.0 if flags.all else 0.1, time.time()
    calls = [judge(*c) for c in cases(flags.seed, share) if flags.only in c[0]]
    lines = told("calls", calls, started)
    started = time.time()
    words = [judge_flag(*c) for c in flag_cases(flags.seed, share) if flags.only in c[0].stem]
    lines += told("command lines", words, started)
    print("\n".join(lines))
    verdicts = [*calls, *words]
    why = Counter(v.message for v in calls if v.kind == "allowed")
    lines += [f"allowed  {count} times: {text}" for text, count in why.most_common()]
    bad = [v for v in verdicts if v.kind not in ("good", "allowed")]
    lines += [f"{v.kind:9}{v.call}({v.argument}={v.value}) {v.message}" for v in bad]
    if flags.report:
        flags.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    amiss = any(v.kind in AMISS for v in verdicts)
    return 1 if amiss or min(share_of_good(calls), share_of_good(words)) < LEAST else 0


def told(what: str, verdicts: list[Verdict], started: float) -> list[str]:
    """Two lines on some verdicts."""
    counts = Counter(v.kind for v in verdicts)
    return [
        f"{len(verdicts)} {what} in {time.time() - started:.0f} s: {dict(counts)}",
        f"{share_of_good(verdicts):.2%} of their refusals name argument, value and remedy",
    ]


if __name__ == "__main__":
    sys.exit(main())
