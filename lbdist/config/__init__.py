"""The configuration of a study: its schema, its composition, and what is built from it."""
