"""Makes the helpers in tests/ importable from everywhere in the project."""
