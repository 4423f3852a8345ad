"""The REST API daemon: requests in, rows and tasks out. One blueprint file a resource."""
