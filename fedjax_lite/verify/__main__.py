"""``python -m fedjax_lite.verify``; see `fedjax_lite.verify.command`."""

import sys

from fedjax_lite.verify.command import main

if __name__ == "__main__":
    sys.exit(main())
