"""The one place that holds the client's version."""

VERSION = "1.0.0"
