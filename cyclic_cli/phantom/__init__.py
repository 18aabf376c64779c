"""Synthetic chest radiographs with reports and known findings: the demo data."""
