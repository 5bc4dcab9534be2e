"""One loop, and what it is made of: `trainer.py` first, then `setup.py` and `step.py`."""
