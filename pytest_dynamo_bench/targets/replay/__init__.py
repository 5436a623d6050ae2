"""The replay target: Dynamo's own discrete-event simulation of a configuration."""
