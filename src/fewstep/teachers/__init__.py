"""Teachers that others have trained, read without executing anything and written once as model files of our own."""
