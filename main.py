"""Trains, evaluates and predicts: python main.py --config=configs/quickstart.py [--workdir=DIR] [--mode=MODE]."""

import sys

from absl import app, flags

from resnext_jax import cli, config_file


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    config_file.define_config(to)
    flags.declare_key_flag("config", to)  # --help shows the flags of this file
    flags.DEFINE_string(
        "workdir", None, "Where the run lies; default runs/<config name>. Run again, it resumes.", flag_values=to
    )
    flags.DEFINE_string("mode", "train", f"One of: {', '.join(cli.MODES)}.", flag_values=to)
    flags.DEFINE_bool("raw", False, "Other modes: the last weights, where averages (EMA) are kept.", flag_values=to)
    flags.DEFINE_bool("json", False, "Evaluate and predict: print one JSON object as the last line.", flag_values=to)
    return to


if __name__ == "__main__":
    app.define_help_flags()
    cli.main(define_flags(flags.FLAGS), sys.argv)
