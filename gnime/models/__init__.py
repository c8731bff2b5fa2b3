"""The networks of the paper: classifier, inverters and noise injector."""
