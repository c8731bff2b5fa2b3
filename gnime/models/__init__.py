"""The paper's networks: victim and evaluation classifier, inverters, noise injector."""
