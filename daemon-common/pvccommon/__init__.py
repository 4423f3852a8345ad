"""What both daemons share: configuration, database, queue, storage pools, planning of builds."""

__version__ = "1.0.0"
