"""The commit that `git archive` wrote into its copy of this file (.gitattributes)."""

COMMIT = "$Format:%H$"
