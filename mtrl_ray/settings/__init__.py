"""The tree of settings, how a section is validated, and how secrets are kept out of it."""
