"""Distillation from Python, without settings files: a network, a data loader and a method of one's own."""
