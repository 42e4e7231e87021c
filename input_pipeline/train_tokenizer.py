"""`python -m input_pipeline.train_tokenizer`; see `input_pipeline.text.train_tokenizer`."""

import sys

from input_pipeline.text.train_tokenizer import main

if __name__ == "__main__":
    sys.exit(main())
