"""Long tests of what the software survives: `python -m stress`, QUICK=1 for a shorter run."""
