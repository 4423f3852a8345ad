"""Importing images: a stranger's bytes are read by a process without rights, and written by this one."""
