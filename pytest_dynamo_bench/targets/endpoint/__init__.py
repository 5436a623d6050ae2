"""The endpoint target: what is already deployed, by its URL."""
