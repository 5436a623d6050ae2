"""A vision worker on Dynamo's runtime: image encoder, embedding cache, and a timed engine.

Dynamo's mocker has no vision encoder. This worker serves the real frontend in its place: it
decodes images or reads the pixels that the frontend decoded, encodes them with real
arithmetic, keeps the results in Dynamo's own cache, and times its language part by an engine
profile. docs/images-and-caches.md says why so, and what of it is Dynamo's.
"""
