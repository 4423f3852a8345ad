"""The Flask application."""

from flask import Flask, Response, request
from werkzeug.routing import Map

from pvcapid import (
    audit,
    auth,
    builds,
    errors,
    image_uploads,
    images,
    networks,
    nodes,
    orphans,
    ovas,
    pools,
    profiles,
    retries,
    root,
    scripts,
    services,
    snapshots,
    status,
    task_log,
    tasks,
    templates,
    templates_network,
    templates_storage,
    templates_system,
    userdata,
    vms,
    volume_content,
    volumes,
)
from pvccommon.config import Config
from pvccommon.errors import WrongInput

BLUEPRINTS = (
    root.blueprint,
    templates.blueprint,
    templates_system.blueprint,
    templates_network.blueprint,
    templates_storage.blueprint,
    userdata.blueprint,
    scripts.blueprint,
    images.blueprint,
    image_uploads.blueprint,
    ovas.blueprint,
    profiles.blueprint,
    builds.blueprint,
    tasks.blueprint,
    retries.blueprint,
    orphans.blueprint,
    task_log.blueprint,
    vms.blueprint,
    nodes.blueprint,
    networks.blueprint,
    status.blueprint,
    pools.blueprint,
    volumes.blueprint,
    volume_content.blueprint,
    snapshots.blueprint,
)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_PATH = 1024


class LiteralMap(Map):
    """Never redirects: with existing clients a redirected POST becomes a GET."""

    def __init__(self) -> None:
        super().__init__(strict_slashes=False, merge_slashes=False)


class Api(Flask):
    url_map_class = LiteralMap  # type: ignore[assignment]  # Flask calls it without arguments


def create_app(config: Config) -> Flask:
    """The application; connects to nothing yet. Raises EnvironmentFault when a secret cannot be read."""
    app = Api("pvcapid", static_folder=None, template_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    services.init_app(app, config)
    errors.init_app(app)
    app.before_request(refuse_odd_paths)
    auth.init_app(app)
    audit.init_app(app)
    app.after_request(set_headers)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint, url_prefix=auth.PREFIX)
    return app


def refuse_odd_paths() -> None:
    """Control characters and endless names have no place in any URL of ours."""
    if len(request.path) > MAX_PATH or not request.path.isprintable():
        raise WrongInput(
            "read the request", "its path is too long, or holds characters that are not printable"
        )


def set_headers(answer: Response) -> Response:
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
    if services.services().config.api.ssl.enabled:
        answer.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    return answer
