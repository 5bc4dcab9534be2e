"""The verbs of `ae music`, and what they read and write."""
