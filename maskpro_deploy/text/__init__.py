"""The text that ships with the package, as one compressed file."""
