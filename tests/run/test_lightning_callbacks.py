"""Lightning's own callbacks, Trainer arguments and torch's schedulers, from YAML: each works and resumes exactly, or is
refused by name. A release that adds one fails here until it is classified."""

from __future__ import annotations

import inspect
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import lr_scheduler

from tests.run.toy_run import ToyData, ToyModule
from tests.stress.campaign import BASE, prepare
from tests.stress.killing import Instants, attempt
from tinytf.cli.config.keys import REFUSED
from tinytf.cli.config.parser import parser_of
from tinytf.cli.main import main
from tinytf.run.callbacks.averaging import AveragedWeights
from tinytf.training.lightning_module import LanguageModel

OWN_MODULE = """
from pathlib import Path
import torch

def windows(batch):
    return len(batch[0])

def note(trainer, module):
    Path("noted").touch()

class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 1e-3, beta: float = 0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["beta"])
                p.sub_(average.sign(), alpha=group["lr"])
        return loss
"""
"""Lies next to the config file: nothing else puts it onto Python's path."""

WATCHING, AVERAGING, EQUAL = "watching", "averaging", "equal averages"
"""The runs that the callbacks which work are in."""

CLASS = "for classes of the user's own to begin with"

CALLBACKS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: the run that it is in and its arguments, or what it is refused with
    "BackboneFinetuning": ("freeze them in a LanguageModel of your own", {}),
    "BaseFinetuning": (CLASS, {}),
    "BasePredictionWriter": (CLASS, {}),
    "BatchSizeFinder": ("tinytf plan says what fits", {}),
    "Callback": (CLASS, {}),
    "Checkpoint": (CLASS, {}),
    "DeviceStatsMonitor": (WATCHING, {}),
    "EMAWeightAveraging": (AVERAGING, {"decay": 0.9, "update_starting_at_step": 1}),
    "EarlyStopping": (WATCHING, {"monitor": "val/loss", "patience": 50}),
    "GradientAccumulationScheduler": ("use trainer.accumulate_grad_batches", {"scheduling": {"2": 2}}),
    "LambdaCallback": (WATCHING, {"on_train_start": "own_module.note"}),
    "LearningRateFinder": ("Tuner.lr_find", {}),
    "LearningRateMonitor": (WATCHING, {}),
    "ModelCheckpoint": (WATCHING, {"monitor": "val/loss", "save_last": True}),
    "ModelPruning": ("use an int8 or int4 format of tinytf export", {"pruning_fn": "l1_unstructured"}),
    "ModelSummary": (WATCHING, {}),
    "OnExceptionCheckpoint": ("use checkpoint.every_n_steps", {"dirpath": "mine"}),
    "ProgressBar": (CLASS, {}),
    "RichModelSummary": (WATCHING, {}),
    "RichProgressBar": (AVERAGING, {}),
    "SpikeDetection": ("use tracking.loss.spike_factor", {}),
    "StochasticWeightAveraging": ("use EMAWeightAveraging or WeightAveraging", {"swa_lrs": 0.1}),
    "TQDMProgressBar": (WATCHING, {}),
    "ThroughputMonitor": (WATCHING, {"batch_size_fn": "own_module.windows", "window_size": 2}),
    "Timer": (WATCHING, {"duration": "00:01:00:00"}),
    "WeightAveraging": (EQUAL, {}),
}

ARGUMENTS: dict[str, Any] = {
    # name: the value that the run below has, or why no value of it is tried there. Others are in keys.REFUSED.
    "accelerator": "cpu", "accumulate_grad_batches": 2, "benchmark": True, "callbacks": "above", "detect_anomaly": True,
    "deterministic": True, "devices": 1, "enable_autolog_hparams": False, "enable_model_summary": True,
    "enable_progress_bar": False, "gradient_clip_algorithm": "value", "gradient_clip_val": 0.5, "inference_mode": False,
    "limit_predict_batches": "tests/cli/test_messages.py", "limit_test_batches": "tests/cli/test_messages.py",
    "limit_val_batches": 2, "log_every_n_steps": 2,
    "logger": "tests/run/test_loggers.py", "max_steps": 9, "min_steps": 2, "num_nodes": 1, "num_sanity_val_steps": 1,
    "plugins": "tests/cli/test_every_key.py", "precision": "64-true", "profiler": "simple",
    "strategy": "tests/end_to_end", "val_check_interval": 3,
}  # fmt: skip

SCHEDULERS: dict[str, dict[str, Any] | str] = {
    # name: arguments of one that goes on exactly, or why there is none
    "ChainedScheduler": "made of schedulers that are built with the optimizer: refused",
    "ConstantLR": {"total_iters": 6},
    "CosineAnnealingLR": {"T_max": 9},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.01, "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
    "LinearLR": {},
    "MultiStepLR": {"milestones": [2, 6]},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "OneCycleLR": {"max_lr": [0.02, 0.003, 0.003], "total_steps": 9},
    "PolynomialLR": {},
    "ReduceLROnPlateau": {"patience": 0, "threshold": 1.0},
    "SequentialLR": "as ChainedScheduler",
    "StepLR": {"step_size": 2},
}


DECIDED_HERE = ("trainer.enable_progress_bar", "model.schedule.warmup_steps")


def fit(folder: Path, *flags: str, settings: dict[str, Any], kill_at: int = 0) -> int:
    """`tinytf fit` of the stress campaign's text in a forked child, dead at a micro-batch if one is given."""
    base = {key: value for key, value in BASE.items() if key not in DECIDED_HERE}
    settings = {**base, **settings}
    ordered = sorted(settings, key=lambda key: (key.count("."), key))
    words = ["fit", *flags, *(f"--{key}={settings[key]}" for key in ordered), "--ckpt_path=last"]
    return attempt(words, folder, Instants(2 * kill_at, only="training_step"))[0]


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two checkpoints differ, but for what is measured in seconds and what says where they come from."""
    if place in ("/tinytf", "/callbacks/JournalCallback/seconds") or place.endswith("/time_elapsed"):
        return []
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [each for key in a for each in differences(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [each for n, both in enumerate(zip(a, b, strict=True)) for each in differences(*both, f"{place}/{n}")]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [place]
    return [] if a == b else [f"{place}: {a} {b}"]


def exact(whole: Path, resumed: Path) -> dict[str, Any]:
    """The last checkpoint of two runs in folders that are asserted to have ended in the same state, and the same files.

    The resumed one is moved to where the other was: callbacks store absolute paths.
    """
    ends, files = [], []
    for folder in (whole, resumed):
        (run,) = folder.glob("checkpoints/killed/version_*")
        ends.append(torch.load(run / "last.ckpt", weights_only=True))
        files.append(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.ckpt")))
    assert files[0] == files[1]
    assert differences(*ends) == []
    end: dict[str, Any] = ends[0]
    return end


def interrupted(tmp_path: Path, settings: dict[str, Any], kill_at: int, *flags: str, files: Any = None) -> Path:
    """A folder with a run that was never stopped, ``whole``, and one that was killed and resumed, ``resumed``."""
    work = tmp_path / "work"
    for name in ("whole", "resumed"):
        prepare(work)
        for path, content in (files or {}).items():
            (work / path).parent.mkdir(exist_ok=True)
            (work / path).write_text(content)
        if name == "resumed":
            assert fit(work, *flags, settings=settings, kill_at=kill_at) == -signal.SIGKILL, said(work)
        assert fit(work, *flags, settings=settings) == 0, said(work)
        shutil.move(work, tmp_path / name)
    return tmp_path


def test_a_signal_within_a_validation_of_averages_saves_the_weights_and_the_averages_in_their_places(
    tmp_path: Path,
) -> None:
    flags = [
        "fit",
        "--trainer.callbacks=EMAWeightAveraging",
        *(f"--{key}={value}" for key, value in {**BASE, **SHORT}.items()),
    ]
    for name, instants in (("whole", None), ("stopped", Instants(5, signal.SIGTERM, only="validation_step"))):
        prepare(tmp_path / name)
        code, _ = attempt(flags, tmp_path / name, instants)
        assert code == (0 if instants is None else 128 + signal.SIGTERM), said(tmp_path / name)
    assert attempt(["fit", "--ckpt_path=last"], tmp_path / "stopped")[0] == 0, said(tmp_path / "stopped")
    ends = [
        torch.load(tmp_path / name / "checkpoints/killed/version_0/last.ckpt", weights_only=True)
        for name in ("whole", "stopped")
    ]
    for key in ("state_dict", "current_model_state"):
        assert differences(*(end[key] for end in ends)) == []


def test_averages_in_float64_leave_the_weights_in_float64(tmp_path: Path) -> None:
    module = ToyModule()
    trainer = Trainer(
        max_steps=2, val_check_interval=2, check_val_every_n_epoch=None, precision="64-true", accelerator="cpu",
        callbacks=[WeightAveraging(), AveragedWeights()], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=ToyData())
    assert all(not torch.equal(weight, weight.float().double()) for weight in module.parameters())


def said(folder: Path) -> str:
    return (folder / "attempts.log").read_text()


def config_of(run: str) -> str:
    callbacks = [
        {"class_path": name, "init_args": arguments} for name, (place, arguments) in CALLBACKS.items() if place == run
    ]
    return yaml.safe_dump({"trainer": {"callbacks": callbacks, "enable_progress_bar": True}})


def tensorboard(folder: Path) -> dict[str, list[int]]:
    """The steps of each tag."""
    events = EventAccumulator(str(next(folder.glob("checkpoints/killed/version_*"))))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


SHORT = {"trainer.max_steps": 9, "trainer.val_check_interval": 3, "checkpoint.every_n_steps": 2}
"""Saves at 2, 4, … and validates at 3, 6, 9: a kill in step 6 resumes from 4."""


def test_each_callback_argument_and_scheduler_is_classified() -> None:
    assert {*CALLBACKS} == {*lightning.pytorch.callbacks.__all__}
    arguments = {*inspect.signature(Trainer.__init__).parameters} - {"self"}
    refused = {key.removeprefix("trainer.") for key in REFUSED if key.startswith("trainer.")}
    assert {*ARGUMENTS} | refused == arguments
    assert not {*ARGUMENTS} & refused
    keys = {action.dest for action in parser_of("fit")._actions}
    assert {f"trainer.{name}" for name in ARGUMENTS} <= keys
    abstract = {"LRScheduler", "_LRScheduler"}
    kinds = {name for name, kind in vars(lr_scheduler).items() if inspect.isclass(kind)}
    assert {name for name in kinds if issubclass(getattr(lr_scheduler, name), lr_scheduler.LRScheduler)} == {
        *SCHEDULERS,
        *abstract,
    }


REFUSALS = [name for name, (outcome, _) in CALLBACKS.items() if outcome not in (WATCHING, AVERAGING, EQUAL, CLASS)]


@pytest.mark.parametrize("name", REFUSALS)
def test_a_callback_that_cannot_work_is_refused_with_what_to_use(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    says, arguments = CALLBACKS[name]
    Path("c.yaml").write_text(
        yaml.safe_dump({"trainer": {"callbacks": [{"class_path": name, "init_args": arguments}]}})
    )
    assert main(["fit", "--config", "tiny", "--config", "c.yaml"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"tinytf: error: c.yaml:2: trainer.callbacks: {name} ")
    assert says in last
    assert not Path("checkpoints").exists()


def test_those_that_watch_change_nothing_show_what_they_are_for_and_resume(tmp_path: Path) -> None:
    files = {"mine/own_module.py": OWN_MODULE, "mine/c.yaml": config_of(WATCHING)}
    interrupted(tmp_path, SHORT, 6, "--config=mine/c.yaml", files=files)
    end = exact(tmp_path / "whole", tmp_path / "resumed")
    plain = tmp_path / "plain"
    prepare(plain)
    assert fit(plain, settings=SHORT) == 0
    (last,) = plain.glob("checkpoints/killed/version_0/last.ckpt")
    assert differences(torch.load(last, weights_only=True)["state_dict"], end["state_dict"]) == []
    for folder in (tmp_path / "whole", tmp_path / "resumed"):
        log, tags = said(folder), tensorboard(folder)
        assert "Trainable params" in log, "ModelSummary"
        assert "Modules in train mode" in log, "RichModelSummary"
        assert "Epoch 0" in log, "TQDMProgressBar"
        assert "step 4/9" not in log, "our progress is shown too"
        assert (folder / "noted").exists(), "LambdaCallback"
        kept = sorted(path.name for path in folder.glob("checkpoints/killed/version_0/checkpoints/*"))
        assert len(kept) == 2
        assert kept[1] == "last.ckpt"
        # Its own rows number the steps from 0, the journal's, which have what it puts among the metrics, from 1.
        assert {*tags["lr-MuonAdamW/matrices"]} == {*range(10)}, "LearningRateMonitor"
        assert tags["DeviceStatsMonitor.on_train_batch_end/cpu_percent"] == [*range(9)]
        assert any(tag.endswith("samples_per_sec") for tag in tags), "ThroughputMonitor"


@pytest.mark.parametrize(("run", "first"), [(AVERAGING, 1), (EQUAL, 0)])
def test_those_that_average_weights_resume_and_their_averages_are_the_model(
    run: str, first: int, tmp_path: Path
) -> None:
    files = {"mine/own_module.py": OWN_MODULE, "mine/c.yaml": config_of(run)}
    # The first command line is the same as those that resume, of which += doubles nothing.
    flags = ["--config=mine/c.yaml", "--model.optimizer=own_module.Lion", "--trainer.callbacks+=ModelCheckpoint"]
    flags += ["--trainer.callbacks.every_n_train_steps=2", "--trainer.callbacks.save_top_k=-1"]
    settings = {**SHORT, "trainer.accumulate_grad_batches": 2, "checkpoint.every_n_steps": 1, "checkpoint.keep_last": 0}
    interrupted(tmp_path, settings, 11, *flags, files=files)
    end = exact(tmp_path / "whole", tmp_path / "resumed")
    (folder,) = (tmp_path / "whole").glob("checkpoints/killed/version_0")
    states = [torch.load(folder / f"step-{step:07d}.ckpt", weights_only=True) for step in range(1, 10)]
    averages = None
    for state in states[first:]:
        weights = {key: value.double() for key, value in state["current_model_state"].items()}
        if averages is None:
            averages, seen = weights, 1
        else:
            seen += 1
            share = 1 / seen if run == EQUAL else 0.1
            averages = {key: (1 - share) * averages[key] + share * value for key, value in weights.items()}
    assert averages is not None
    for key, value in averages.items():
        torch.testing.assert_close(end["state_dict"][key].double(), value, rtol=1e-4, atol=1e-6)
        assert not torch.equal(end["current_model_state"][key], end["state_dict"][key]) or value.ndim < 2
    assert "Epoch 0" in said(tmp_path / "whole") or run == EQUAL
    # A checkpoint's word imports nothing that lies in a folder.
    assert attempt(["fit", "--ckpt_path=last", "--trainer.max_steps=10"], tmp_path / "whole")[0] == 2
    last = said(tmp_path / "whole").splitlines()[-1]
    assert "model.optimizer is own_module.Lion, which no installed package has" in last
    assert "give --config" in last


def test_a_timer_stops_the_run_which_goes_on_without_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    timer = ["--trainer.callbacks=Timer", "--trainer.callbacks.duration=00:00:00:01"]
    steps = {
        **SHORT,
        "trainer.max_steps": 10**6,
        "trainer.val_check_interval": 10**5,
        "checkpoint.every_n_steps": 10**5,
    }
    assert fit(tmp_path, *timer, settings={**steps, "trainer.accumulate_grad_batches": 3}) == 0
    for again in range(2):
        assert said(tmp_path).count("Time limit reached") == again + 1
        assert attempt(["fit", "--ckpt_path=last"], tmp_path)[0] == 0
    stopped = re.findall(r"resuming from step (\d+)", said(tmp_path))[-1]
    more = f"--trainer.max_steps={int(stopped) + 1}"
    assert attempt(["fit", "--ckpt_path=last", "--trainer.callbacks=null", more], tmp_path)[0] == 0
    assert (tmp_path / f"checkpoints/killed/version_0/step-{int(stopped) + 1:07d}.ckpt").exists()


def test_trainer_arguments_work_together_and_resume(tmp_path: Path) -> None:
    settings = {f"trainer.{name}": value for name, value in ARGUMENTS.items() if "/" not in str(value)}
    settings = {key: str(value).lower() for key, value in settings.items() if value != "above"}
    interrupted(tmp_path, {**SHORT, **settings}, 11)
    exact(tmp_path / "whole", tmp_path / "resumed")
    log = said(tmp_path / "resumed")
    assert "FIT Profiler Report" in log
    assert "[LightningModule]LanguageModel.optimizer_step" in log
    assert "Modules in train mode" in log


def test_profilers_report(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert fit(tmp_path, "--trainer.profiler=advanced", settings={**SHORT, "trainer.max_steps": 1}) == 0
    assert "Profile stats for: [Strategy]SingleDeviceStrategy.training_step" in said(tmp_path)


def scheduled(name: str) -> tuple[torch.optim.Optimizer, Any]:
    kind, arguments = getattr(lr_scheduler, name), SCHEDULERS[name]
    module = LanguageModel(
        vocab_size=5, d_model=16, n_heads=1, n_layers=1, schedule=lambda optimizer: kind(optimizer, **arguments)
    )
    built = module.configure_optimizers()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return built["optimizer"], built["lr_scheduler"]["scheduler"]


def rates(optimizer: torch.optim.Optimizer, scheduler: Any, losses: list[float]) -> list[list[Any]]:
    found = []
    for loss in losses:
        optimizer.step()
        scheduler.step(*([loss] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        found.append([(group["lr"], group["betas"], group["momentum"]) for group in optimizer.param_groups])
    return found


@pytest.mark.parametrize("name", [name for name, case in SCHEDULERS.items() if isinstance(case, dict)])
def test_a_scheduler_goes_on_from_what_a_checkpoint_may_hold(name: str, tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5]
    whole = rates(*scheduled(name), losses)
    optimizer, scheduler = scheduled(name)
    rates(optimizer, scheduler, losses[:5])
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state")
    resumed = scheduled(name)
    for part, state in zip(resumed, torch.load(tmp_path / "state", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert rates(*resumed, losses[5:]) == whole[5:]
    assert whole[0] != whole[-1], "it changes nothing"


@pytest.mark.parametrize("name", ["OneCycleLR", "ReduceLROnPlateau"])
def test_a_run_with_a_scheduler_of_torch_resumes_and_keeps_its_arguments(name: str, tmp_path: Path) -> None:
    path = f"torch.optim.lr_scheduler.{name}"
    schedule = yaml.safe_dump({"model": {"schedule": {"class_path": path, "init_args": SCHEDULERS[name]}}})
    settings = {**SHORT, "checkpoint.every_n_steps": 4, "trainer.max_steps": 9}
    # Killed where the validation is done, and saved, and the step after it is not: from there the run resumes.
    interrupted(tmp_path, settings, 7, "--config=c.yaml", files={"c.yaml": schedule})
    end = exact(tmp_path / "whole", tmp_path / "resumed")
    assert len({group["lr"] for group in end["optimizer_states"][0]["param_groups"]}) > 1
    for flag in ("--model.optimizer.lr=0.1", "--model.schedule=Linear"):
        argv = ["fit", "--ckpt_path=last", "--trainer.max_steps=9", flag]
        assert attempt(argv, tmp_path / "resumed")[0] == 2
        last = said(tmp_path / "resumed").splitlines()[-1]
        assert "a scheduler of torch takes each learning rate from the one before" in last


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 8}, "OneCycleLR ends at step 8, and trainer.max_steps is 9"),
        ("SequentialLR", {}, "use Linear or Cosine"),
        ("ChainedScheduler", {}, "use Linear or Cosine"),
        ("LambdaLR", {"lr_lambda": "math.cos"}, "model.schedule: LambdaLR: "),
        (
            "lightning.pytorch.cli.ReduceLROnPlateau",
            {"monitor": "train/loss"},
            "monitor is train/loss, but must be val/loss",
        ),
    ],
)
def test_a_scheduler_that_cannot_work_is_refused(
    name: str, arguments: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(yaml.safe_dump({"model": {"schedule": {"class_path": name, "init_args": arguments}}}))
    assert main(["fit", "--config", "tiny", "--config", "c.yaml", "--trainer.max_steps", "9"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("tinytf: error: ")
    assert says in last
