"""`levi-train`: the fitting side's commands. Each imports its work when it runs: help does not wait for torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic_settings import CliPositionalArg

from levi_serve.bundle.commands import Command, run
from training.options import Device, Options, default_cache

SUMMARY = "Fit LEVI on ratings, evaluate it in and out of distribution, and export it for levi-serve."


class OnDevice(Command):
    """Flags of every command that computes."""

    device: Annotated[
        Device,
        Field(
            description="Where to compute; auto takes a GPU if there is one. Tried by us: cpu, also several processes "
            "under torchrun. Not tried by anybody: cuda, one or several; xla, a TPU. `python -m benchmarks.devices` "
            "checks a device against the CPU."
        ),
    ] = "auto"
    cache: Annotated[
        Path, Field(default_factory=default_cache, description="Where backbone views are kept between runs.")
    ]


class Fit(OnDevice, Options):
    """Fit LEVI: backbone views once, then scratch tower and heads. Run again after a kill, it continues."""

    out: Annotated[Path, Field(description="Folder of the new run.")]

    def __call__(self) -> None:
        from training.run import fit

        options = Options.model_validate(self.model_dump(include=set(Options.model_fields)))
        record = fit(options, self.out, self.cache, self.device)
        print(
            f"{self.out}: validation RMSE {min(record.curve):.4f} after {record.epochs} epochs at "
            f"{record.learning_rate:g}, fitted in {record.seconds:.1f} s"
        )
        if record.random is not None:
            print(
                f"Chosen with held-out {self.select}s; the random part would choose {record.random.epochs} epochs at "
                f"{record.random.learning_rate:g}, RMSE {min(record.random.curve):.4f}"
            )


class OnRun(OnDevice):
    """Flags of every command on a finished run."""

    run: Annotated[CliPositionalArg[Path], Field(description="Folder of a finished run.")]
    data: Annotated[Path | None, Field(description="Where the run's data lies now, if it was moved.")] = None


class Evaluate(OnRun):
    """Errors of a run on ID test, OOD and each shift slice, beside reference rows; writes metrics.json."""

    def __call__(self) -> None:
        from training.evaluate import evaluate
        from training.report import show
        from training.run import open_run

        show(evaluate(open_run(self.run, self.cache, self.device, self.data)))


class Export(OnRun):
    """Export a run to a model repository as its next version."""

    repository: Annotated[CliPositionalArg[Path], Field(description="Model repository; made if it is missing.")]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", description="Model name inside the repository.")] = "levi"
    parity_pairs: Annotated[
        PositiveInt, Field(description="Pairs on which the graphs must agree with the fitted model.")
    ] = 256
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        Field(
            description="Of the graphs. fp16: weights, and the backbone's arithmetic; gains time on a GPU only. "
            "int8: the backbone, quantised; for a CPU. The manifest says what it does to ratings and RMSE."
        ),
    ] = "fp32"

    def __call__(self) -> None:
        from training.export import export
        from training.run import open_run

        run = open_run(self.run, self.cache, "cpu", self.data)
        print(export(run, self.repository, self.name, self.parity_pairs, self.precision))


class Reproduce(OnDevice):
    """Every method of a plan on every seed: tables, JSON and plots. Run again, it fits only what is missing."""

    plan: Annotated[
        CliPositionalArg[str],
        Field(
            description="ml-100k, ml-100k-subset, ml-100k-frozen, amazon, sentiment, synthetic, or a plan's .toml file."
        ),
    ]
    data: Annotated[Path | None, Field(description="Folder with the dataset's files.")] = None
    runs: Annotated[Path, Field(description="Folder of the fits.")] = Path("runs/reproduce")
    docs: Annotated[Path, Field(description="Folder of the tables and plots.")] = Path("docs/results")

    def __call__(self) -> None:
        if self.plan == "synthetic":
            from training.synthetic import reproduce_synthetic

            reproduce_synthetic(self.docs)
        else:
            from training.reproduce import reproduce

            reproduce(self.plan, self.data, self.runs, self.docs, self.cache, self.device)


class Retrain(OnDevice):
    """Learn from feedback, and serve the new model if it passes the gates. Run again after a kill, it continues."""

    run: Annotated[CliPositionalArg[Path], Field(description="Finished run whose data and options every night uses.")]
    repository: Annotated[CliPositionalArg[Path], Field(description="Model repository that holds its export.")]
    feedback: Annotated[str, Field(min_length=1, description="The servers' feedback log: a folder or a Redis URL.")]
    entities: Annotated[
        str | None,
        Field(description="The servers' list of entities, a file or a Redis URL: who was erased is left out."),
    ] = None
    state: Annotated[Path, Field(description="Folder of the nights: events, data, fits, reports.")] = Path(
        "runs/nightly"
    )
    data: Annotated[Path | None, Field(description="Where the run's data lies now, if it was moved.")] = None
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", description="Model name inside the repository.")] = "levi"
    warm: Annotated[
        bool, Field(description="Every night goes on from the run's model; otherwise it fits from nothing.")
    ] = True
    epochs: Annotated[PositiveInt, Field(description="Of a warm start, the longest fit.")] = 3
    learning_rate: Annotated[PositiveFloat, Field(description="Of a warm start, the peak.")] = 1e-3
    margin_id: Annotated[
        NonNegativeFloat, Field(description="RMSE by which the held-out ratings in distribution may become worse.")
    ] = 0.005
    margin_newest: Annotated[NonNegativeFloat, Field(description="The same for the newest ratings.")] = 0.0
    margin_ood: Annotated[NonNegativeFloat, Field(description="The same for each shift slice.")] = 0.01

    def __call__(self) -> None:
        from training.gates import Margins
        from training.retrain import Retraining

        report = Retraining(
            base=self.run,
            repository=self.repository,
            name=self.name,
            log=self.feedback,
            entities=self.entities,
            state=self.state,
            cache=self.cache,
            device=self.device,
            data=self.data,
            margins=Margins(id=self.margin_id, newest=self.margin_newest, ood=self.margin_ood),
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            warm=self.warm,
        ).run()
        if report is None:
            print("no new feedback: nothing to do")
        else:
            print(f"night {report.night}: {self.repository / self.name / str(report.version)}")


class Download(Command):
    """Fetch MovieLens-100K from GroupLens, after showing its licence, and check it."""

    dataset: Annotated[CliPositionalArg[str], Field(pattern="^ml-100k$", description="ml-100k.")]
    out: Annotated[Path, Field(description="Folder to put the files in.")]

    def __call__(self) -> None:
        from training.datasets.download import download_ml100k

        download_ml100k(self.out)


COMMANDS: dict[str, type[Command]] = {
    "fit": Fit,
    "evaluate": Evaluate,
    "export": Export,
    "reproduce": Reproduce,
    "retrain": Retrain,
    "download": Download,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run("levi-train", SUMMARY, COMMANDS, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
