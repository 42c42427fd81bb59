"""The fuzz suite as a command: ``python -m tests.fuzz --all --report fuzz.txt``."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_run import cases, judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every case; else a tenth of them")
    parser.add_argument("--seed", type=int, default=0, help="which tenth")
    parser.add_argument("--only", default="", help="callables whose name holds this")
    parser.add_argument("--report", type=Path, help="a file for all that is not good or allowed")
    flags = parser.parse_args()
    started, verdicts = time.time(), []
    for full, argument, kind in cases(flags.seed, 1.0 if flags.all else 0.1):
        if flags.only in full:
            verdicts.append(judge(full, argument, kind))
    counts = Counter(v.kind for v in verdicts)
    refused = sum(counts[k] for k in ("good", "mute", "deep"))
    lines = [
        f"{len(verdicts)} calls in {time.time() - started:.0f} s: {dict(counts)}",
        f"{counts['good'] / max(refused, 1):.2%} of {refused} refusals name argument, value and "
        "remedy",
    ]
    print("\n".join(lines))
    bad = [v for v in verdicts if v.kind not in ("good", "allowed")]
    lines += [f"{v.kind:9}{v.call}({v.argument}={v.value}) {v.message}" for v in bad]
    if flags.report:
        flags.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if counts["hang"] + counts["crash"] + counts["accepted"] else 0


if __name__ == "__main__":
    sys.exit(main())
