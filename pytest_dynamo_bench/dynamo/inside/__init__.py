"""Programs that run in the Python of a Dynamo, where nothing of this package is."""
