"""Hydra finds here the settings of fewstep that follow from others and need no files."""
