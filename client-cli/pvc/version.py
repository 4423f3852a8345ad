"""The one place that holds the client's version."""

VERSION = "2.0.0"
