"""The results pages, made from experiments/results and experiments/tables/published.toml.

    python experiments/tables           # rewrites README.md's section and the guide's page
    python experiments/tables --check   # fails where they are not up to date

The README's table stands between the markers `<!-- results -->` and `<!-- /results -->`; the
complete tables, with seeds, settings and caveats, are the page colab/guide/results.md. A file of
results that is missing leaves its rows out. Published numbers are in published.toml, each with its
source and a mark: [text] read in the paper, [log] in a public repository's logs or code, [plot] off
a figure, [own] measured with independent code of ours, or derived, [run] measured here with the
authors' code. Which of them are reproduced is judged by rule (verdicts.py) from the rows of
verdicts.toml. The pages' text is in sections/.

There is no --smoke: it takes seconds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the experiments

from shared.script import script

from tables.pages import Flags, main

if __name__ == "__main__":
    script(main, Flags, __doc__)
