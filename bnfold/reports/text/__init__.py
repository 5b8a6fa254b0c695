"""Results for people, a module for each command."""
