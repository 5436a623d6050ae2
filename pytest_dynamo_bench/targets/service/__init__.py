"""A service that answers at a URL, whoever brought it up: asking it, and measuring it."""
