"""The parts that come with the core; each fits its contract as a stranger's does."""
