"""The commit that `git archive` (.gitattributes) or the building of a wheel (setup.py) wrote into its copy of this file."""

COMMIT = "$Format:%H$"
