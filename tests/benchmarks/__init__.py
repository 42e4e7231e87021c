"""Benchmarks: python -m tests.benchmarks [NAME[:OPTION=VALUE,...] ...] [--json FILE]

One module per benchmark, with a docstring that says what is compared and why that is fair, and a
function `measure(**options) -> list of rows (dicts)`. They measure; they assert nothing.
"""
