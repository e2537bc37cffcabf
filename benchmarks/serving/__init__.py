"""How fast the server is, against what people would otherwise use, and what it does when things go wrong.

python -m benchmarks.serving --help; what is measured and how: docs/benchmarks.md.
"""
