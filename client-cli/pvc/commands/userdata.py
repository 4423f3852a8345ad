"""`pvc provisioner userdata`: cloud-init documents."""

from pvc.commands.document import DocumentKind, document_group
from pvc.completion import userdata_names
from pvc.errors import WrongInput


def check_cloud_config(text: str) -> None:
    """A #cloud-config document must be YAML. Other kinds (multipart, scripts) are not looked at."""
    if not text.lstrip().startswith("#cloud-config"):
        return
    import yaml

    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WrongInput("the userdata is not valid YAML", why=" ".join(str(error).split())) from error


userdata = document_group(
    DocumentKind(
        key="userdata",
        label="userdata",
        help="Userdata: documents for cloud-init in the guest.",
        suffix=".yaml",
        names=userdata_names,
        check=check_cloud_config,
    )
)
