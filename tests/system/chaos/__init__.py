"""The fault matrix: everything a build depends on is broken, at every point of the build."""
