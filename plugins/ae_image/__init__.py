"""The image plugin: pictures as data, MNIST recipes, and the `ae image` commands."""
