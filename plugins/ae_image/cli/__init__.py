"""The verbs of `ae image`, and what they read and write."""
