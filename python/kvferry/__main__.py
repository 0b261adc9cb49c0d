"""python -m kvferry is the kvferry command."""

import sys

from kvferry._cli import main

if __name__ == "__main__":
    sys.exit(main())
