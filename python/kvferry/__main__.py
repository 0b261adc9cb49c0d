"""python -m kvferry is the kvferry command."""

import sys

from kvferry._command.main import main

if __name__ == "__main__":
    sys.exit(main())
