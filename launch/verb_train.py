"""`spikeloom pretrain`, `finetune` and `evaluate`: shards into trained models, those into scores."""

from launch.verb import Verb


def _pretrain_schema() -> type:
    from pretrain.train import PretrainConfig

    return PretrainConfig


def _pretrain(config) -> int:
    def train() -> str:
        from pretrain.train import pretrain

        return pretrain(config)

    return _by_ranks(config, train)


def _by_ranks(config, train) -> int:
    """Train here, or as several processes of this machine where the config asks for them."""
    from launch.local_ranks import rank_told, run_ranks

    code = run_ranks(config.trainer.devices, config.trainer.device)
    if code is not None:
        return code
    run = train()
    return _reported(run) if rank_told() == 0 else 0


def _plan_pretrain(config) -> list[str]:
    return [f"would train {config.model.name} for {config.trainer.steps:,} steps into {config.run}", *_chosen(config)]


def _chosen(config) -> list[str]:
    """The sessions that a training would use, read from the index of its shards."""
    from pretrain.train import chosen_sessions

    sessions = chosen_sessions(config.shards, config.sessions, config.exclude, cache=config.cache).sessions
    return [
        f"on {len(sessions)} sessions of {config.shards}:",
        *(f"  {row.id}  {row.units} units, {row.hours['train'] * 60:.1f} min of training data" for row in sessions),
    ]


def _finetune_schema() -> type:
    from pretrain.finetune import FinetuneConfig

    return FinetuneConfig


def _finetune(config) -> int:
    def train() -> str:
        from pretrain.finetune import finetune

        return finetune(config)

    return _by_ranks(config, train)


def _plan_finetune(config) -> list[str]:
    return [
        f"would adapt {config.checkpoint} ({config.mode}) for {config.trainer.steps:,} steps into {config.run}",
        *_chosen(config),
    ]


def _evaluate_schema() -> type:
    from pretrain.evaluate import EvaluateConfig

    return EvaluateConfig


def _evaluate(config) -> int:
    from pretrain.evaluate import evaluate

    return _reported(evaluate(config))


def _plan_evaluate(config) -> list[str]:
    return [f"would judge the checkpoint of {config.run} on the {config.split} split; results and report go there too"]


def _reported(run) -> int:
    """Writes the report of a run folder and shows the run."""
    from launch.report import write_report
    from launch.show import show_run

    page = write_report(run)
    show_run(run)
    print(f"report: {page}")
    return 0


PRETRAIN = Verb(
    "train a model on the sessions of a shard root",
    "spikeloom pretrain shards=shards run=runs/pretrain exclude='*HELD_OUT'",
    _pretrain_schema,
    _pretrain,
    _plan_pretrain,
    needs="shards=FOLDER run=FOLDER",
    file="pretrain/fast.yaml",
)

FINETUNE = Verb(
    "adapt a checkpoint to sessions it never saw",
    "spikeloom finetune checkpoint=runs/pretrain shards=shards sessions='*NEW' run=runs/finetune",
    _finetune_schema,
    _finetune,
    _plan_finetune,
    needs="checkpoint=FOLDER shards=FOLDER run=FOLDER",
    file="finetune/fast.yaml",
)

EVALUATE = Verb(
    "judge a run on held-out intervals beside a Wiener filter, and write its report",
    "spikeloom evaluate run=runs/finetune",
    _evaluate_schema,
    _evaluate,
    _plan_evaluate,
    needs="run=FOLDER",
)
