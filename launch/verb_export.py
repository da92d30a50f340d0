"""`spikeloom export`: a run, trained by whatever ranks and strategy, into one checkpoint folder that loads anywhere."""

from launch.verb import Verb


def _schema() -> type:
    from pretrain.export import ExportConfig

    return ExportConfig


def _run(config) -> int:
    from pretrain.export import export

    exported = export(config)
    print(f"{exported.what} of {config.run}: {exported.folder}")
    return 0


def _plan(config) -> list[str]:
    from pretrain.export import saved_steps

    steps = ", ".join(map(str, saved_steps(config))) or "none"
    return [f"would write which={config.which} of {config.run} to {config.output}; saves of steps there: {steps}"]


EXPORT = Verb(
    "write the weights of a run as one checkpoint that loads anywhere",
    "spikeloom export run=runs/pretrain output=checkpoints/pretrain which=last",
    _schema,
    _run,
    _plan,
    needs="run=FOLDER output=FOLDER",
)
