"""The commands of `fewstep`, by what they are about; each file is imported at start and imports inside what is slow."""
