"""Generates the demo data: synthetic chest radiographs with reports and known findings."""
