"""`python -m input_pipeline.corpus`; see `input_pipeline.corpus.command`."""

import sys

from input_pipeline.corpus.command import main

if __name__ == "__main__":
    sys.exit(main())
