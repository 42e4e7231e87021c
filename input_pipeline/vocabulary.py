"""`python -m input_pipeline.vocabulary`; see `input_pipeline.words.command`."""

import sys

from input_pipeline.words.command import main

if __name__ == "__main__":
    sys.exit(main())
