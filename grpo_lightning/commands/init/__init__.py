"""A new project of the user's own: config, verifier and data that run as they are."""
