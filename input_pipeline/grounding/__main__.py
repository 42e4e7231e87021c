"""`python -m input_pipeline.grounding`; see `input_pipeline.grounding.command`."""

import sys

from input_pipeline.grounding.command import main

if __name__ == "__main__":
    sys.exit(main())
