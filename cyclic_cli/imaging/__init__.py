"""Reads image files to pixels, and draws pixels as PNG figures."""
