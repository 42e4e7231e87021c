"""What kinds of tokens a row of CogVLM (arXiv 2311.03079) has."""

LANGUAGE, VISION, PADDING = 0, 1, -1
