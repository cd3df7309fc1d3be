"""Command line room: `srlab figures, student, dashboard, train, evaluate, upscale, cka, claims, verify, ...`.

Takes words, gives calls to the other rooms, prints what they return. Nothing is computed here, and torch is loaded only
by the commands that need it, so that `srlab --help` answers at once. A mistake of the user ends in one line and exit
code 2, a failed notebook in 1, Ctrl-C in 130; `--debug` shows where an error came from.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlab import bench_command, claims_command, machine, runtime

DEFAULT_MODEL = "edsr-tiny-igconv"
"""Ships with the project and serves x2, x3 and x4."""


class Command(NamedTuple):
    """A word after `srlab`."""

    summary: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
    example: str


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake in one line and names the option that was probably meant."""

    def error(self, message: str) -> typing.NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}{hint} ({self.prog} --help lists the options)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 something failed, 2 a mistake in the request, 130 Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _dispatch(words)
        except KeyboardInterrupt:
            print("\nsrlab: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `srlab models | head`: nobody reads on, which is no error of ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except ModuleNotFoundError as error:
            if debug or (error.name or "").startswith("srlab"):
                raise
            print(f"srlab: {error}: the installation is not whole (srlab doctor lists what is absent)", file=sys.stderr)
            return 1
        except Exception as error:
            if debug or not _is_mistake(error):
                raise
            print(f"srlab: {error}", file=sys.stderr)
            return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        import srlab

        print(f"srlab {srlab.__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"no command {name!r}{hint} Commands: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    parser = Parser(
        prog=f"srlab {name}",
        description=command.summary,
        epilog=f"example: {command.example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(parser)
    return command.run(parser.parse_args(words[1:]))


def _overview() -> str:
    lines = ["usage: srlab COMMAND [options]", "", "SR Lab: one model, many scales; every number with its control.", ""]
    lines += [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "srlab COMMAND --help says more; --debug shows the traceback of an error."])


def _is_mistake(error: Exception) -> bool:
    """Errors that tell the user something: those the rooms define, wrong values, and files that cannot be used."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.startswith("srlab.")


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    if issubclass(category, UserWarning):
        print(f"srlab: note: {message}", file=sys.stderr)


def _scale(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"scale is {text!r}, expected a whole number from 1 on, such as 2, 3 or 4")
    return int(text)


# figures


def _figures_options(parser: Parser) -> None:
    parser.add_argument("notebooks", nargs="*", help="beginnings of file names, such as 02; default: all")
    parser.add_argument("--profile", choices=runtime.PROFILES, help="size of the runs; default: SRLAB_PROFILE, or demo")
    parser.add_argument("--results", type=Path, help="folder to write to; default: SRLAB_RESULTS, or results")
    parser.add_argument("--timeout", type=float, help="seconds a cell may take; default: as long as it likes")


def _figures(options: argparse.Namespace) -> int:
    from srlab import gallery

    if options.profile:
        os.environ["SRLAB_PROFILE"] = options.profile
    notebooks = gallery.find_notebooks(names=options.notebooks)
    outcomes = gallery.run_all(notebooks, options.results, options.timeout)
    return int(any(outcome.error for outcome in outcomes))


def _student_options(parser: Parser) -> None:
    parser.add_argument("notebooks", nargs="*", help="beginnings of file names, such as 02; default: all")
    parser.add_argument("--folder", type=Path, help="folder to write to; default: results/student")
    parser.add_argument("--home", default="", metavar="URL", help="GitHub repository to open them from: adds buttons")
    parser.add_argument("--solutions", action="store_true", help="keep the solutions, for colleagues")


def _student(options: argparse.Namespace) -> int:
    from srlab import classroom, gallery

    how = {"home": options.home, "solutions": options.solutions}
    copies = classroom.write_student_copies(gallery.find_notebooks(names=options.notebooks), options.folder, **how)
    print(f"{len(copies)} notebooks {'with' if options.solutions else 'without'} solutions in {copies[0].parent}")
    return 0


def _dashboard_options(parser: Parser) -> None:
    parser.add_argument("--port", type=int, default=8866, help="default: 8866")
    parser.add_argument("--no-browser", action="store_true", help="only serve the page, do not open it")


def _dashboard(options: argparse.Namespace) -> int:
    from srlab import classroom, gallery

    (notebook,) = gallery.find_notebooks(names=["10"])
    return classroom.serve_dashboard(notebook, options.port, browser=not options.no_browser)


# train


def _train_options(parser: Parser) -> None:
    from srlab import train_command

    train_command.add_options(parser)


def _train(options: argparse.Namespace) -> int:
    from srlab import train_command

    return train_command.run(options)


# upscale and evaluate


def _upscale_options(parser: Parser) -> None:
    parser.add_argument("picture", type=Path, help="a picture file, any format Pillow reads")
    parser.add_argument("--scale", type=_scale, required=True, help="how many times larger: 2, 3, 4, ...")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a name of `srlab models`, a checkpoint file, or bicubic"
    )
    parser.add_argument("--output", type=Path, help="file to write, .png or .jpg; default: PICTURE_xSCALE.png")
    parser.add_argument(
        "--tile", type=int, help="side of tiles in pixels, 0 for none; default: only for large pictures"
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="average over 8 flips and rotations; 8 times slower"
    )


def _upscale(options: argparse.Namespace) -> int:
    from srlab import evaluate, images

    output = options.output or options.picture.with_name(f"{options.picture.stem}_x{options.scale}.png")
    if output.exists() and options.picture.exists() and output.samefile(options.picture):
        raise ValueError(f"--output is {output}, the picture itself: choose another name, so that it is not lost")
    images.check_target(output)
    lr = images.load_image(options.picture)
    model = _model(options.model, options.scale)
    sr = evaluate.upscale(model, lr, options.scale, options.tile, options.self_ensemble, progress=True)
    images.save_image(output, sr)
    print(f"{output} ({lr.shape[2]} x {lr.shape[1]} -> {sr.shape[2]} x {sr.shape[1]}, {options.model})")
    return 0


def _model(name: str, scale: int) -> Any:
    """The model called `name`: bicubic, a file, module:function, a name of `srlab models`, or one without its "-x2"."""
    from srlab import compare, evaluate, weights

    if name == "bicubic":
        return evaluate.Bicubic()
    endings = (".safetensors", ".pth", ".pt", ".ckpt")
    if name.endswith(endings):
        return _loaded(weights.load_checkpoint, Path(name))
    if re.search(r"[\\/]", name):  # a path, even with a colon, as in C:\net.bin
        raise ValueError(f"{name} is no checkpoint: expected a name ending in {', '.join(endings)}")
    if ":" in name:
        return _loaded(compare.own_model, name)
    per_scale = f"{name}-x{scale}"
    known = weights.names()
    series = [other for other in known if re.fullmatch(rf"{re.escape(name)}-x\d+", other)]
    if series and per_scale not in series:
        raise ValueError(f"no weights of {name} for x{scale}, only {', '.join(series)}; IGConv models take any scale")
    return _loaded(weights.load, per_scale if name not in known and per_scale in known else name)


@functools.cache
def _loaded(load: Callable[[Any], Any], source: str | Path) -> Any:
    return load(source).to(machine.pick_device())


def _evaluate_options(parser: Parser) -> None:
    parser.add_argument("models", nargs="*", metavar="NAME", help="as --model of `srlab upscale`; several are compared")
    parser.add_argument("--data", nargs="+", default=["set5"], help="sets of pictures or folders; default: set5")
    parser.add_argument("--scale", type=_scale, nargs="+", default=[2, 3, 4], help="scales; default: 2 3 4")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="A minus B, picture by picture, with an interval"
    )
    parser.add_argument("--tile", type=int, help="side of tiles in pixels, as for `srlab upscale`")
    parser.add_argument("--self-ensemble", action="store_true", help="average over 8 flips and rotations")
    parser.add_argument("--output", type=Path, metavar="CSV", help="a row per picture goes here; a killed run goes on")
    parser.add_argument("--record", action="store_true", help="bring the scores in data/results up to date (hours)")


def _evaluate(options: argparse.Namespace) -> int:
    import pandas as pd

    from srlab import datasets, evaluate, metrics

    if options.record:
        os.environ["SRLAB_RECORD"] = "1"
        print(
            evaluate.summary(evaluate.recorded_benchmarks()).to_string(index=False), metrics.STANDARD.line(), sep="\n"
        )
        return 0
    names = list(dict.fromkeys([*options.models, *(options.compare or ())]))
    if not names:
        raise ValueError("nothing to evaluate: name a model (srlab models lists them), for example bicubic")
    if options.output and options.output.suffix != ".csv":
        raise ValueError(f"--output is {options.output}, expected a name ending in .csv")
    partial = options.output.with_suffix(".partial.csv") if options.output else None
    sets = [datasets.load(name) for name in options.data]
    if len({pictures.name for pictures in sets}) < len(sets):
        raise ValueError(f"--data names sets that are called alike: {', '.join(pictures.name for pictures in sets)}")
    models = {(name, scale): _model(name, scale) for scale in options.scale for name in names}  # all, before any work
    for (name, scale), model in models.items():
        evaluate.try_out(model, scale, name)
    tables, how = [], {"tile": options.tile, "self_ensemble": options.self_ensemble, "partial": partial}
    for pictures, ((name, scale), model) in itertools.product(sets, models.items()):
        table = evaluate.benchmark(model, pictures, scale, **how)
        table.insert(0, "model", name)
        tables.append(table)
    rows = pd.concat(tables, ignore_index=True)
    if options.output:
        runtime.atomic_write(options.output, lambda draft: rows.to_csv(draft, index=False))
        partial.unlink(missing_ok=True)
    print(evaluate.summary(rows).to_string(index=False))
    for line in evaluate.comparisons(rows, *options.compare) if options.compare else ():
        print(line)
    print(metrics.STANDARD.line() + (" Mean over eight turned pictures." if options.self_ensemble else ""))
    if options.output:
        print(f"{len(rows)} rows in {options.output}")
    return 0


# cka


def _cka_options(parser: Parser) -> None:
    from srlab import features

    parser.add_argument("models", nargs=2, metavar="NAME", help="as --model of `srlab upscale`, or module:function")
    parser.add_argument("--data", default="set14", help="a set of pictures or a folder; default: set14")
    parser.add_argument("--scale-of-lr", type=_scale, default=4, help="scale of the LR pictures both see; default: 4")
    for side in "ab":
        text = f"layers of model {side.upper()}, names or patterns such as 'body.*'; default: its blocks"
        parser.add_argument(f"--layers-{side}", nargs="+", metavar="PATTERN", help=text)
    parser.add_argument("--reduction", choices=features.REDUCTIONS, default="pixels", help="what an example is")
    parser.add_argument("--output", type=Path, metavar="CSV", help="the numbers go here")


def _cka(options: argparse.Namespace) -> int:
    from srlab import compare, features, sidebyside

    pair = [_model(name, options.scale_of_lr) for name in options.models]
    pictures = [lr.to(machine.pick_device()) for lr in compare.lr_pictures(options.data, options.scale_of_lr)]
    how = options.layers_a, options.layers_b, features.REDUCTIONS[options.reduction]
    found = sidebyside.put_side_by_side(*pair, pictures, *how, progress=True)
    print(*found.lines(), sep="\n")
    if options.output:
        runtime.atomic_write(options.output, lambda draft: found.table().to_csv(draft, index=False))
    return 0


# fetch and models


def _fetch_options(parser: Parser) -> None:
    parser.add_argument(
        "names", nargs="+", help="sets of pictures, published weights (imdn-x2, or imdn for all), or all"
    )


def _fetch(options: argparse.Namespace) -> int:
    from srlab import datasets, weights

    sets = [row.name for row in datasets.status()]
    published = [card.name for card in weights.cards() if card.url]
    wanted = []
    for name in options.names:
        series = [weight for weight in published if re.fullmatch(rf"{re.escape(name)}(-x\d+)?", weight)]
        found = [*sets, *published] if name == "all" else [name] if name in sets else series
        if not found and name not in weights.names():
            near = difflib.get_close_matches(name, [*sets, *published], n=3)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"expected all, or of {', '.join(sets + published)}"
            )
            raise ValueError(f"nothing called {name!r} to fetch; {hint}")
        wanted += found
    troubles = 0
    for name in dict.fromkeys(wanted):
        try:
            print(f"{name}: {_fetch_one(name, name in sets)}")
        except datasets.FetchError as error:  # the others may still be had
            troubles += 1
            print(f"srlab: {error}", file=sys.stderr)
    return 2 if troubles else 0


def _fetch_one(name: str, is_set: bool) -> str:
    from srlab import datasets, weights

    if is_set:
        return f"{len(datasets.load(name))} pictures are here"
    card = weights.card(name)
    return f"{datasets.fetch_file(card.url, card.sha256, card.size, progress=True)} ({card.licence})"


def _models_options(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="show everything that is known about one")


def _models(options: argparse.Namespace) -> int:
    from srlab import doctor

    print(*(doctor.about_model(options.name) if options.name else doctor.models()), sep="\n")
    return 0


# doctor


def _no_options(parser: Parser) -> None:
    pass


def _doctor(options: argparse.Namespace) -> int:
    from srlab import doctor

    broken = doctor.missing_packages()
    for line in doctor.report_broken(broken) if broken else doctor.report():
        print(line)
    return int(bool(broken))


COMMANDS = {
    "figures": Command(
        "run the notebooks and show their figures on one page",
        _figures_options,
        _figures,
        "srlab figures 02 --profile smoke",
    ),
    "student": Command(
        "copy the notebooks without their solutions", _student_options, _student, "srlab student 00 01 --folder class"
    ),
    "dashboard": Command(
        "serve the playground as a page without code", _dashboard_options, _dashboard, "srlab dashboard --port 8866"
    ),
    "train": Command(
        "train a model; --help shows every field of a recipe",
        _train_options,
        _train,
        "srlab train --recipe demo --steps 300",
    ),
    "evaluate": Command(
        "score models on sets of pictures",
        _evaluate_options,
        _evaluate,
        f"srlab evaluate --compare {DEFAULT_MODEL} bicubic --data set5 set14 --scale 2 3 4",
    ),
    "upscale": Command("enlarge a picture", _upscale_options, _upscale, "srlab upscale photo.jpg --scale 3"),
    "cka": Command(
        "compare what two models see", _cka_options, _cka, "srlab cka smfanet-df2k-x2 smfanet-df2k-x4 --data set14"
    ),
    "claims": Command(
        "the paper's claims, our numbers, the verdicts",
        claims_command.add_options,
        claims_command.run,
        "srlab claims --rerun",
    ),
    "verify": Command(
        "say which run made a figure, a table or weights",
        claims_command.add_verify_options,
        claims_command.verify,
        "srlab verify data/results/benchmarks.csv",
    ),
    "bench": Command(
        "time the lab against other ways to do the same",
        bench_command.add_options,
        bench_command.run,
        "srlab bench imresize CKA",
    ),
    "fetch": Command("get pictures and published weights, verified", _fetch_options, _fetch, "srlab fetch set5 imdn"),
    "models": Command("list the trained models", _models_options, _models, "srlab models imdn-x2"),
    "doctor": Command("say what is installed, what is here, how to get the rest", _no_options, _doctor, "srlab doctor"),
}
