"""Trains, evaluates and predicts: python main.py --config=configs/quickstart.py [--workdir=DIR] [--mode=MODE]."""

import os
import sys

from absl import app, flags

from resnext_jax import cli, streams
from resnext_jax.config import command_line


def define_flags(to: flags.FlagValues) -> flags.FlagValues:
    """Adds the command's flags to `to` and returns it."""
    command_line.define_config(to)
    flags.declare_key_flag("config", to)  # --help shows the flags of this file
    flags.DEFINE_string(
        "workdir", None, "Directory of the run; default runs/<config name>. Run again, it resumes.", flag_values=to
    )
    flags.DEFINE_string("mode", "train", f"One of: {', '.join(cli.MODES)}.", flag_values=to)
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Directory of compiled programs for the next start; default ~/.cache/resnext_jax; empty for none.",
        flag_values=to,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "Several processes: HOST:PORT of process 0, if no cluster environment tells.",
        flag_values=to,
    )
    flags.DEFINE_integer("num_processes", None, "Several processes: how many; 1 for this one alone.", flag_values=to)
    flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.", flag_values=to)
    flags.DEFINE_float("join_timeout_s", 300.0, "Seconds to wait for all processes.", flag_values=to)
    flags.DEFINE_bool("raw", False, "Other modes: the last weights, where averages (EMA) are kept.", flag_values=to)
    flags.DEFINE_string("report", None, "Evaluate: new directory for what the network gets wrong.", flag_values=to)
    flags.DEFINE_integer("top", 5, "Predict: how many classes of each image.", flag_values=to)
    flags.DEFINE_string("csv", None, "Predict: new file for a table of all images.", flag_values=to)
    flags.DEFINE_string("draw", None, "Predict with a detector: directory for pictures with boxes.", flag_values=to)
    flags.DEFINE_bool("json", False, "Evaluate and predict: print one JSON object as the last line.", flag_values=to)
    return to


if __name__ == "__main__":
    app.define_help_flags()
    try:
        cli.main(define_flags(flags.FLAGS), sys.argv)
    except SystemExit as end:
        if not end.code:
            raise
        streams.flush()
        os._exit(int(end.code))  # Python would first wait for an input thread, which may hang in a read
