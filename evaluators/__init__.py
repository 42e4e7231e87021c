"""Evaluators: one module per evaluator; none knows a method."""
