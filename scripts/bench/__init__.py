"""The pieces of `scripts/bench.py`: the work, who does it, what is measured, how it is printed."""
