"""The version of this release; the one place in the code where it stands."""

__version__ = "0.1.0"
