"""``python -m fedjax_lite.report``; see `fedjax_lite.report.command`."""

import sys

from fedjax_lite.report.command import main

if __name__ == "__main__":
    sys.exit(main())
