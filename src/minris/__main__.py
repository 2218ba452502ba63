"""`python -m minris`."""

import sys

from minris.cli import main

if __name__ == "__main__":
    sys.exit(main())
