"""What is found while reading a document: problems, which refuse it, and warnings, which are shown."""

from dataclasses import dataclass, field

from pvccommon.errors import Problem, WrongInput

MAX_FINDINGS = 100


@dataclass
class Findings:
    """Collects all problems before any is raised; the first hundred of each sort are kept."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def wrong(self, path: str, message: str) -> None:
        if len(self.problems) < MAX_FINDINGS:
            self.problems.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        warning = str(Problem(path, message))
        if len(self.warnings) < MAX_FINDINGS and warning not in self.warnings:
            self.warnings.append(warning)

    def raise_problems(self, what: str) -> None:
        """Raises WrongInput when there is any problem."""
        if self.problems:
            raise WrongInput(what, problems=self.problems)
