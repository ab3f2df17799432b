"""Students out: folders and files for those who do not have fewstep."""

UNKNOWN_LICENCE = "unknown: ask the teacher's maker"
