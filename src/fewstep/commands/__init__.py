"""The commands of `fewstep`, by what they are about; each file is imported at start, and imports what is slow inside."""
