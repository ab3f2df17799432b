"""Local pages in a browser, made of Panel: a model to play with, and the runs below outputs/. They load nothing from
the network, and answer this machine alone."""
