"""Figures that anyone can make again: each is a ratio of things that were measured in one run."""
