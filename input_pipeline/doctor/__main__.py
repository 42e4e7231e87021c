"""`python -m input_pipeline.doctor`; see `input_pipeline.doctor.command`."""

import sys

from input_pipeline.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
