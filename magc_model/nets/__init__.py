"""The networks: one model a file, its signal diagram on top."""
