"""A server at a URL: querying and measuring it."""
