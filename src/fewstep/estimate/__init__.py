"""plan=true: what a command would train, how long it takes and what it needs, before it does."""
