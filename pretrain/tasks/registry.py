"""Names of tasks: what `task.name` may be, and the configuration class of each."""

from pretrain.tasks.regression import Regression, RegressionConfig

TASKS: dict[str, tuple[type, type]] = {"regression": (RegressionConfig, Regression)}
