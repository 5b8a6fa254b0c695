"""Showing results: to people as text, to programs as JSON. No decisions are made here."""
