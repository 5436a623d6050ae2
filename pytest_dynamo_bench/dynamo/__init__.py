"""Dynamo as something that is chosen: which one, where it is, and what it can do.

Nothing of Dynamo is imported here: a program of ``inside/`` runs in the Python that has it.
"""
