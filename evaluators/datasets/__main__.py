"""`python -m evaluators.datasets`; see `evaluators.datasets.command`."""

import sys

from evaluators.datasets.command import main

if __name__ == "__main__":
    sys.exit(main())
