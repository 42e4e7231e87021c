"""`python -m evaluators.answers`; see `evaluators.answers.shared.command`."""

import sys

from evaluators.answers.shared.command import main

if __name__ == "__main__":
    sys.exit(main())
