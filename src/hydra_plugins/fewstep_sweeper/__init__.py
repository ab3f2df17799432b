"""Hydra finds fewstep's sweeper here; it plans in `fewstep.sweeps`."""
