"""`python -m input_pipeline.prepare`; see `input_pipeline.prepare.command`."""

import sys

from input_pipeline.prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
