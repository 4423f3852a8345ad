"""Run by Alembic: applies migrations on the connection that `Database.migrate` hands over."""

from alembic import context

from pvccommon.models import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, compare_type=True
)
with context.begin_transaction():
    context.run_migrations()
