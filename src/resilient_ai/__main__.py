"""`python -m resilient_ai`: the same as the command `resilient-ai`."""

import sys

from resilient_ai._adapters.cli import main

if __name__ == "__main__":
    sys.exit(main())
