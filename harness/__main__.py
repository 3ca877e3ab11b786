"""`python -m harness key=value …` runs one cell; with `-m`, a sweep."""

import sys

from harness.main import main

if __name__ == "__main__":
    sys.exit(main())
