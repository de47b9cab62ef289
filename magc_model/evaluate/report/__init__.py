"""What an evaluation leaves for people: a page, a text and the figures behind both."""
