"""Export of models: folders and files that open without fewstep."""

UNKNOWN_LICENCE = "unknown: ask the teacher's maker"
