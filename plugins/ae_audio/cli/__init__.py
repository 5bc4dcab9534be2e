"""The verbs of `ae audio`, and what they read and write."""
