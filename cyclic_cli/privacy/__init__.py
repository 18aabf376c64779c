"""Keyed hashes in place of identities, and what is cut out of reports."""
