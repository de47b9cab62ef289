"""Where imagery and vectors come from."""
