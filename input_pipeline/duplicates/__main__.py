"""`python -m input_pipeline.duplicates`; see `input_pipeline.duplicates.command`."""

import sys

from input_pipeline.duplicates.command import main

if __name__ == "__main__":
    sys.exit(main())
