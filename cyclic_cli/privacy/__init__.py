"""Replaces identities by keyed hashes, and removes identities from reports."""
