"""Inspections in the formats that other programs read, and JSON, which every command has."""
