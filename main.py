"""Trains, evaluates and predicts: python main.py --config=configs/quickstart.py [--workdir=DIR] [--mode=MODE]."""

from absl import flags
from ml_collections import config_flags

from resnext_jax import cli

config_flags.DEFINE_config_file("config", None, "A file of configs/; fields by --config.field=value.")
flags.DEFINE_string("workdir", None, "Where the run lies; default runs/<config name>. Run again, it resumes.")
flags.DEFINE_string("mode", "train", f"One of: {', '.join(cli.MODES)}.")
flags.DEFINE_bool("json", False, "Evaluate and predict: print one JSON object as the last line.")

if __name__ == "__main__":
    cli.main(flags.FLAGS)
