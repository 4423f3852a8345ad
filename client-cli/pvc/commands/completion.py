"""`pvc completion`: the script that teaches a shell to complete our command lines."""

import click
from click.shell_completion import ShellComplete, get_completion_class

from pvc.context import Context, pass_context
from pvc.errors import CliError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
@pass_context
def completion(context: Context, ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash: pvc completion bash > /etc/bash_completion.d/pvc
    zsh:  pvc completion zsh > "${fpath[1]}/_pvc"
    fish: pvc completion fish > ~/.config/fish/completions/pvc.fish
    """
    shell_class = get_completion_class(shell)
    if shell_class is None:
        raise CliError(f"click has no completion for {shell}", kind="environment")
    maker = shell_class(ctx.find_root().command, {}, "pvc", "_PVC_COMPLETE")
    # The base method: bash's own first runs `bash` to learn its version.
    context.out(ShellComplete.source(maker))
