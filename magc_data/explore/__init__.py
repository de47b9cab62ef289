"""Looking at a dataset in a browser: one page that needs no network, or the same page from a server on this machine."""
