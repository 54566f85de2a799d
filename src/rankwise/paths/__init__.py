"""Paths: low-rank maps between two points of a network, and the switches in front of them."""
